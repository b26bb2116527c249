// y = gate * sigmoid(gate) * up, element by element.
//
// An element a thread. Must move: two arrays in, one out; moves just that.
const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
if (i < unsigned(count[0])) y[i] = T(silu(float(gate[i])) * float(up[i]));
