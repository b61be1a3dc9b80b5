// What the attention kernels share: reading rows of heads in quads of four numbers, scores, and the bits of dropout.
//
// Scores are worked on in base 2: p = exp2(s log2(e) - logsumexp), logsumexp in base 2 as well. Queries are multiplied
// by query_factor(), as they are read or in their products with the keys.
//
// Expects the specialization constants WIDTH, QUERY_HEADS, KEY_HEADS, ALIGNED, SCALE, SOFT_CAP, DROPOUT and the push
// constants query_length, key_length, random_step, seed_low, seed_high, stream and threshold.

const float LOG2_E = 1.44269504088896340736;
const float LOG_2 = 0.69314718055994530942;
#define NEGATIVE_INFINITY uintBitsToFloat(0xff800000u)
#define LOWEST uintBitsToFloat(0xff7fffffu)  // a maximum of no scores, from which those left out can be subtracted
const uint QUADS = (WIDTH + 3) / 4;
const uint GROUP = QUERY_HEADS / KEY_HEADS;

float query_factor() { return SOFT_CAP == 0.0 ? SCALE * LOG2_E : SCALE / SOFT_CAP; }

// tanh to an absolute error of 1e-7, without overflow.
float bounded_tanh(float x) {
    float magnitude = 1.0 - 2.0 / (exp2(abs(x) * (2.0 * LOG2_E)) + 1.0);
    return x < 0.0 ? -magnitude : magnitude;
}

#define STORED_QUAD JOIN(JOIN(T, x4), _value)  // as it is in memory

// Numbers 4 quad to 4 quad + 3 of the row that begins at element `start`; 0 beyond the width.
STORED_QUAD read_stored_quad(JOIN(T, _buffer) source, uint start, uint quad) {
    STORED_QUAD numbers = STORED_QUAD(0);
    if (ALIGNED == 1) {
        if (quad < QUADS) numbers = JOIN(T, x4_buffer)(source).at[start / 4 + quad];
    } else {
        for (uint i = 0; i < 4; ++i)
            if (quad * 4 + i < WIDTH) numbers[i] = source.at[start + quad * 4 + i];
    }
    return numbers;
}

vec4 read_quad(JOIN(T, _buffer) source, uint start, uint quad) { return load(read_stored_quad(source, start, quad)); }

vec4 read_float_quad(f32_buffer source, uint start, uint quad) {
    vec4 numbers = vec4(0.0);
    if (ALIGNED == 1) {
        if (quad < QUADS) numbers = f32x4_buffer(source).at[start / 4 + quad];
    } else {
        for (uint i = 0; i < 4; ++i)
            if (quad * 4 + i < WIDTH) numbers[i] = source.at[start + quad * 4 + i];
    }
    return numbers;
}

void write_quad(f32_buffer target, uint start, uint quad, vec4 numbers) {
    if (ALIGNED == 1) {
        if (quad < QUADS) f32x4_buffer(target).at[start / 4 + quad] = numbers;
    } else {
        for (uint i = 0; i < 4; ++i)
            if (quad * 4 + i < WIDTH) target.at[start + quad * 4 + i] = numbers[i];
    }
}

float multiply_add(vec4 a, vec4 b, float sum) {
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, sum))));
}

// The probability that belongs to a product of a query and a key, and the gradient of the score before SCALE, given the
// gradient of the probability, `product`.
float score_probability(inout float score, float row_logsumexp, bool seen) {
    float exponent = score;
    if (SOFT_CAP != 0.0) {
        score = bounded_tanh(score);
        exponent = score * (SOFT_CAP * LOG2_E);
    }
    return seen ? exp2(exponent - row_logsumexp) : 0.0;
}

float score_gradient(float score, float product, float row_logsumexp, float row_delta, bool seen) {
    float gradient = score_probability(score, row_logsumexp, seen) * (product - row_delta);
    return SOFT_CAP == 0.0 ? gradient : gradient * (1.0 - score * score);
}
