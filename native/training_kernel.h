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
    float lanes[LANES], sum = 0.0f;
    STORE(lanes, vector);
    for (int lane = 0; lane < LANES; lane++) sum += lanes[lane];
    return sum;
}

TARGET static inline float NAMED(largest)(VECTOR vector) {
    float lanes[LANES], largest = -INFINITY;
    STORE(lanes, vector);
    for (int lane = 0; lane < LANES; lane++) largest = lanes[lane] > largest ? lanes[lane] : largest;
    return largest;
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

#undef WHOLES
