// y = gate * sigmoid(gate) * up, element by element.
//
// Four elements a thread. Must move: two arrays in, one out; moves just that.
const uint first = 4 * thread_position_in_grid.x;
for (uint i = first; i < min(first + 4, uint(count)); ++i) y[i] = T(silu(float(gate[i])) * float(up[i]));
