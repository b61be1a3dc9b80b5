/* What a training step computes on the CPU between its products, in float32: whole rows at a time, which stay in the
 * first-level cache from one pass over them to the next.
 *
 * Every function may be called from any thread. The bits of a row do not depend on the other rows; they may depend on the
 * kind of processor. */
#ifndef TRAINING_H
#define TRAINING_H

#include <stddef.h>
#include <stdint.h>

/* losses[row] = logsumexp(logits) - logits[ids[row]] of each row of logits [rows, columns], which are capped first by
 * soft_cap * tanh(logit / soft_cap) unless that is 0. With `gradients`, the logits become the derivatives of the loss times
 * weights[row] by the logits before the cap; otherwise, what they become has no meaning. */
void training_losses(float *logits, const int32_t *ids, const float *weights, float soft_cap, int gradients, float *losses,
                     ptrdiff_t rows, ptrdiff_t columns);

#endif
