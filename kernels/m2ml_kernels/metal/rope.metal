// (a, b) -> (a cos - b sin, b cos + a sin) for each pair of dimensions, at angle position * inverse_frequency.
//
// A thread a pair, or one of the dimensions behind them, which is copied. Must move: one array in, one out; moves that.
const uint pairs = inverse_shape[0], heads = x_shape[1], dim = x_shape[2];
const uint j = thread_position_in_grid.x;
const size_t row = thread_position_in_grid.y, start = row * dim;
if (j >= pairs) {
  y[start + pairs + j] = x[start + pairs + j];
} else {
  const float angle = float(positions[row / heads]) * float(inverse[j]);
  const float c = metal::precise::cos(angle) * magnitude, s = metal::precise::sin(angle) * magnitude;
  const size_t one = start + (INTERLEAVED ? 2 * j : j), other = INTERLEAVED ? one + 1 : one + pairs;
  const float a = float(x[one]), b = float(x[other]);
  y[one] = T(a * c - b * s);
  y[other] = T(b * c + a * s);
}
