/* The functions of training.h on the vectors that the processor has. */
#include "internal.h"

#include "training.h"

#include <math.h>
#include <string.h>

#define CHUNK 1024 /* terms of a sum in single precision, before it goes on in double precision */

#define KERNEL "training_kernel.h"
#include "vectors.h"

EXPORT void training_losses(float *logits, const int32_t *ids, const float *weights, float soft_cap, int gradients,
                            float *losses, ptrdiff_t rows, ptrdiff_t columns) {
    CHOSEN(losses)(logits, ids, weights, soft_cap, gradients, losses, rows, columns);
}
