// y = x / (1 + |x|): one thread per element.
uint i = thread_position_in_grid.x;
float value = static_cast<float>(x[i]);
y[i] = static_cast<T>(value / (1.0f + metal::abs(value)));
