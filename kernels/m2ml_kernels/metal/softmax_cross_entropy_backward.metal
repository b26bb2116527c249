// d = exp(logit - lse) (of_loss (1 + 2 z lse) + of_lse) - target of_loss, times 1 - (logit / cap)^2 under a soft cap.
//
// A thread an element, a row of the grid a row. Must move: the logits in, as many out; moves that.
// numbers: smoothing, z, soft cap. A row whose label is ignored or outside the vocabulary has no part of of_loss.
const uint size = logits_shape[1], i = thread_position_in_grid.x, row = thread_position_in_grid.y;
const size_t at = size_t(row) * size + i;
float logit = float(logits[at]);
if (CAPPED) logit = numbers[2] * metal::precise::tanh(logit / numbers[2]);
const int label = labels[row];
const bool counts = label >= 0 && uint(label) < size && label != ignore_index;
const float of = counts ? of_loss[row] : 0.0f;
const float target = (int(i) == label ? 1.0f - numbers[0] : 0.0f) + numbers[0] / float(size);
const float share = metal::precise::exp(logit - lse[row]);
float d = share * (of * (1.0f + 2.0f * numbers[1] * lse[row]) + of_lse[row]) - target * of;
if (CAPPED) d *= 1.0f - (logit / numbers[2]) * (logit / numbers[2]);
gradient[at] = T(d);
