// y = x / (1 + |x|), element by element: a thread each. Must move: x once, y once; moves just that.
uint i = thread_position_in_grid.x;
float value = static_cast<float>(x[i]);
y[i] = static_cast<T>(value / (1.0f + metal::abs(value)));
