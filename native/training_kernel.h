/* The loops of training.c, for one kind of vectors; see vectors.h. */

#define WHOLES NAMED(wholes)
typedef uint32_t WHOLES __attribute__((vector_size(LANES * sizeof(uint32_t))));

/* The next elements of a row that has `left` of them: `other` stands for those that there are not. */
TARGET static inline VECTOR NAMED(next)(const float *place, ptrdiff_t left, float other) {
    if (left >= LANES) return LOAD(place);
    float padded[LANES];
    for (ptrdiff_t lane = 0; lane < LANES; lane++) padded[lane] = lane < left ? place[lane] : other;
    return LOAD(padded);
}

TARGET static inline void NAMED(put)(float *place, ptrdiff_t left, VECTOR vector) {
    if (left >= LANES) {
        STORE(place, vector);
        return;
    }
    float padded[LANES];
    STORE(padded, vector);
    memcpy(place, padded, (size_t)left * sizeof(float));
}

TARGET static inline float NAMED(sum)(VECTOR vector) {
    float lanes[LANES];
    STORE(lanes, vector);
    UNROLLED for (int half = LANES / 2; half > 0; half /= 2)
        UNROLLED for (int lane = 0; lane < half; lane++) lanes[lane] += lanes[lane + half];
    return lanes[0];
}

TARGET static inline float NAMED(largest)(VECTOR vector) {
    float lanes[LANES];
    STORE(lanes, vector);
    UNROLLED for (int half = LANES / 2; half > 0; half /= 2)
        UNROLLED for (int lane = 0; lane < half; lane++)
            lanes[lane] = lanes[lane] > lanes[lane + half] ? lanes[lane] : lanes[lane + half];
    return lanes[0];
}

/* exp(x) - power for x from LEAST_EXPONENT to 0, where power, 2 to a whole number, is the nearest to exp(x): what is left
 * is the exponential series of at most log(2) / 2 in size, less its first term. */
#define LEAST_EXPONENT -87.0f
TARGET static inline VECTOR NAMED(beside_power)(VECTOR x, VECTOR *power) {
    VECTOR shifted = FUSED(x, SPLAT(1.44269504f), SPLAT(12582912.0f)); /* 1.5 * 2^23: the last bits are a whole number */
    VECTOR whole = shifted - SPLAT(12582912.0f);
    VECTOR rest = FUSED(whole, SPLAT(-0.693359375f), x); /* log(2) in two parts, of which this product is exact */
    rest = FUSED(whole, SPLAT(2.12194440e-4f), rest);
    *power = (VECTOR)(((WHOLES)shifted << 23) + (127u << 23));
    VECTOR series = SPLAT(1.0f / 5040);
    series = FUSED(series, rest, SPLAT(1.0f / 720));
    series = FUSED(series, rest, SPLAT(1.0f / 120));
    series = FUSED(series, rest, SPLAT(1.0f / 24));
    series = FUSED(series, rest, SPLAT(1.0f / 6));
    series = FUSED(series, rest, SPLAT(1.0f / 2));
    return *power * FUSED(rest * rest, series, rest);
}

/* exp(x) for x up to 0; 0 below LEAST_EXPONENT. */
TARGET static inline VECTOR NAMED(exponential)(VECTOR x) {
    VECTOR power, beside = NAMED(beside_power)(LARGER(SPLAT(LEAST_EXPONENT), x), &power);
    return (VECTOR)((WHOLES)(power + beside) & ~(WHOLES)(x < SPLAT(LEAST_EXPONENT)));
}

/* (1 - q) / (1 + q) with q = exp(-2 |x|), where 1 - q does not cancel. */
TARGET static inline VECTOR NAMED(tangent)(VECTOR x) {
    WHOLES sign = (WHOLES)x & 0x80000000u;
    VECTOR size = (VECTOR)((WHOLES)x ^ sign), power;
    VECTOR beside = NAMED(beside_power)(LARGER(SPLAT(LEAST_EXPONENT), size * SPLAT(-2.0f)), &power);
    VECTOR less = (SPLAT(1.0f) - power) - beside;
    return (VECTOR)((WHOLES)(less / (SPLAT(2.0f) - less)) | sign);
}

/* See training_losses. */
TARGET static float NAMED(loss)(float *logits, ptrdiff_t count, int32_t id, float weight, float soft_cap, int gradients) {
    float cap = soft_cap != 0.0f ? soft_cap : 1.0f;
    VECTOR most = SPLAT(-INFINITY);
    for (ptrdiff_t n = 0; n < count; n += LANES) {
        VECTOR each = NAMED(next)(logits + n, count - n, -INFINITY);
        if (soft_cap != 0.0f) {
            each = NAMED(tangent)(each / SPLAT(soft_cap));
            NAMED(put)(logits + n, count - n, each);
        }
        most = LARGER(each, most);
    }
    float largest = NAMED(largest)(most), target = logits[id];
    double total = 0.0;
    for (ptrdiff_t start = 0; start < count; start += CHUNK) {
        ptrdiff_t end = count - start < CHUNK ? count : start + CHUNK;
        VECTOR sums = ZERO;
        for (ptrdiff_t n = start; n < end; n += LANES) {
            VECTOR each = NAMED(next)(logits + n, end - n, -INFINITY);
            VECTOR power = NAMED(exponential)((each - SPLAT(largest)) * SPLAT(cap));
            sums += power;
            if (soft_cap != 0.0f) power *= SPLAT(1.0f) - each * each;
            if (gradients) NAMED(put)(logits + n, end - n, power);
        }
        total += NAMED(sum)(sums);
    }
    if (gradients) {
        VECTOR share = SPLAT((float)(weight / total));
        for (ptrdiff_t n = 0; n < count; n += LANES)
            NAMED(put)(logits + n, count - n, NAMED(next)(logits + n, count - n, 0.0f) * share);
        logits[id] -= soft_cap != 0.0f ? weight * (1.0f - target * target) : weight;
    }
    return (float)(log(total) - (double)(target - largest) * cap);
}

TARGET static void NAMED(losses)(float *logits, const int32_t *ids, const float *weights, float soft_cap, int gradients,
                                 float *losses, ptrdiff_t rows, ptrdiff_t columns) {
    for (ptrdiff_t row = 0; row < rows; row++)
        losses[row] = NAMED(loss)(logits + row * columns, columns, ids[row], weights[row], soft_cap, gradients);
}

/* A row of training_norm; returns its scale. */
TARGET static inline float NAMED(norm)(const float *x, const float *weight, const float *bias, float epsilon, int centered,
                                       float *out, float *normalized, ptrdiff_t width) {
    VECTOR sums = ZERO;
    for (ptrdiff_t n = 0; centered && n < width; n += LANES) sums += NAMED(next)(x + n, width - n, 0.0f);
    float mean = NAMED(sum)(sums) / (float)width;
    sums = ZERO;
    for (ptrdiff_t n = 0; n < width; n += LANES) {
        VECTOR each = NAMED(next)(x + n, width - n, mean) - SPLAT(mean);
        sums = FUSED(each, each, sums);
    }
    float scale = 1.0f / sqrtf(NAMED(sum)(sums) / (float)width + epsilon);
    for (ptrdiff_t n = 0; n < width; n += LANES) {
        VECTOR each = (NAMED(next)(x + n, width - n, mean) - SPLAT(mean)) * SPLAT(scale);
        NAMED(put)(normalized + n, width - n, each);
        each *= NAMED(next)(weight + n, width - n, 0.0f);
        if (bias) each += NAMED(next)(bias + n, width - n, 0.0f);
        NAMED(put)(out + n, width - n, each);
    }
    return scale;
}

/* A row of training_norm_backward, whose share is added to dweight. */
TARGET static inline void NAMED(norm_backward)(const float *dout, const float *normalized, float scale, const float *weight,
                                               int centered, float *dx, float *dweight, ptrdiff_t width) {
    VECTOR sums = ZERO, along = ZERO;
    for (ptrdiff_t n = 0; n < width; n += LANES) {
        ptrdiff_t left = width - n;
        VECTOR each = NAMED(next)(dout + n, left, 0.0f), direction = NAMED(next)(normalized + n, left, 0.0f);
        NAMED(put)(dweight + n, left, FUSED(each, direction, NAMED(next)(dweight + n, left, 0.0f)));
        each *= NAMED(next)(weight + n, left, 0.0f);
        sums += each;
        along = FUSED(each, direction, along);
    }
    VECTOR mean = SPLAT(centered ? NAMED(sum)(sums) / (float)width : 0.0f);
    VECTOR share = SPLAT(NAMED(sum)(along) / (float)width);
    for (ptrdiff_t n = 0; n < width; n += LANES) {
        ptrdiff_t left = width - n;
        VECTOR each = NAMED(next)(dout + n, left, 0.0f) * NAMED(next)(weight + n, left, 0.0f);
        each -= mean + share * NAMED(next)(normalized + n, left, 0.0f);
        NAMED(put)(dx + n, left, each * SPLAT(scale));
    }
}

TARGET static void NAMED(norms)(const float *x, const float *weight, const float *bias, float epsilon, int centered, float *out,
                                float *normalized, float *scale, ptrdiff_t rows, ptrdiff_t width) {
    for (ptrdiff_t row = 0, start = 0; row < rows; row++, start += width)
        scale[row] = NAMED(norm)(x + start, weight, bias, epsilon, centered, out + start, normalized + start, width);
}

TARGET static void NAMED(norms_backward)(const float *dout, const float *normalized, const float *scale, const float *weight,
                                         int centered, float *dx, float *dweight, ptrdiff_t rows, ptrdiff_t width) {
    memset(dweight, 0, (size_t)width * sizeof(float));
    for (ptrdiff_t row = 0, start = 0; row < rows; row++, start += width)
        NAMED(norm_backward)(dout + start, normalized + start, scale[row], weight, centered, dx + start, dweight, width);
}

/* Pairs n and n + half of x, which may be out, rotated by angles, or by their opposites if direction is -1. */
TARGET static inline void NAMED(rotated)(const float *x, const float *cosine, const float *sine, float direction, float *out,
                                         ptrdiff_t half) {
    for (ptrdiff_t n = 0; n < half; n += LANES) {
        ptrdiff_t left = half - n;
        VECTOR first = NAMED(next)(x + n, left, 0.0f), second = NAMED(next)(x + half + n, left, 0.0f);
        VECTOR across = NAMED(next)(cosine + n, left, 0.0f), up = NAMED(next)(sine + n, left, 0.0f) * SPLAT(direction);
        NAMED(put)(out + n, left, first * across - second * up);
        NAMED(put)(out + half + n, left, second * across + first * up);
    }
}

TARGET static void NAMED(heads_forward)(const training_heads *of, const float *x, ptrdiff_t x_stride, float epsilon, float *out) {
    ptrdiff_t width = of->width, half = width / 2, row = 0;
    for (ptrdiff_t token = 0; token < of->tokens; token++)
        for (ptrdiff_t head = 0, angle = token % of->positions * half; head < of->heads; head++, row++) {
            const float *from = x + token * x_stride + head * width;
            float *to = out + row * width;
            if (of->weight) {
                of->scale[row] = NAMED(norm)(from, of->weight, NULL, epsilon, 0, to, of->normalized + row * width, width);
                from = to;
            }
            if (of->cosine) NAMED(rotated)(from, of->cosine + angle, of->sine + angle, 1.0f, to, half);
        }
}

TARGET static void NAMED(heads_backward)(const training_heads *of, float *gradients, ptrdiff_t stride, float *dweight) {
    ptrdiff_t width = of->width, half = width / 2, row = 0;
    if (of->weight) memset(dweight, 0, (size_t)width * sizeof(float));
    for (ptrdiff_t token = 0; token < of->tokens; token++)
        for (ptrdiff_t head = 0, angle = token % of->positions * half; head < of->heads; head++, row++) {
            float *each = gradients + token * stride + head * width;
            if (of->cosine) NAMED(rotated)(each, of->cosine + angle, of->sine + angle, -1.0f, each, half);
            if (of->weight)
                NAMED(norm_backward)(each, of->normalized + row * width, of->scale[row], of->weight, 0, each, dweight, width);
        }
}

TARGET static void NAMED(softmax)(float *scores, float *sums, ptrdiff_t rows, ptrdiff_t queries, ptrdiff_t keys) {
    for (ptrdiff_t row = 0, query = 0; row < rows; row++, query = query + 1 < queries ? query + 1 : 0, scores += keys) {
        ptrdiff_t seen = keys - queries + query + 1, end = (seen + LANES - 1) / LANES * LANES;
        if (end > keys) end = keys;
        for (ptrdiff_t n = seen; n < end; n++) scores[n] = -INFINITY;
        VECTOR most = SPLAT(-INFINITY), total = ZERO;
        for (ptrdiff_t n = 0; n < end; n += LANES) most = LARGER(NAMED(next)(scores + n, end - n, -INFINITY), most);
        VECTOR largest = SPLAT(NAMED(largest)(most));
        for (ptrdiff_t n = 0; n < end; n += LANES) {
            VECTOR each = NAMED(exponential)(NAMED(next)(scores + n, end - n, -INFINITY) - largest);
            NAMED(put)(scores + n, end - n, each);
            total += each;
        }
        sums[row] = NAMED(sum)(total);
        memset(scores + end, 0, (size_t)(keys - end) * sizeof(float));
    }
}

TARGET static void NAMED(softmax_backward)(float *gradients, const float *exponentials, const float *along, ptrdiff_t rows,
                                           ptrdiff_t keys) {
    for (ptrdiff_t row = 0; row < rows; row++, gradients += keys, exponentials += keys)
        for (ptrdiff_t n = 0; n < keys; n += LANES) {
            VECTOR each = NAMED(next)(gradients + n, keys - n, 0.0f) - SPLAT(along[row]);
            NAMED(put)(gradients + n, keys - n, each * NAMED(next)(exponentials + n, keys - n, 0.0f));
        }
}

#undef WHOLES
