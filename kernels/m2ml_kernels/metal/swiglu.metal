// y = gate * sigmoid(gate) * up, element by element.
//
// Four elements a thread, a simdgroup's side by side. Must move: two arrays in, one out; moves just that.
const uint step = threads_per_threadgroup.x;
uint i = 4 * threadgroup_position_in_grid.x * dispatch_threads_per_threadgroup.x + thread_position_in_threadgroup.x;
for (uint k = 0; k < 4 && i < uint(count); ++k, i += step) y[i] = T(silu(float(gate[i])) * float(up[i]));
