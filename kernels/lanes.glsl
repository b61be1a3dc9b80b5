// Lanes that share a row: LANES threads, neighbours in the workgroup, hold one row, so a workgroup holds THREADS / LANES
// rows. Include after kernel.glsl, which declares THREADS and LANES, both powers of two.

// The thread's place in the workgroup, such that neighbours are neighbours in a subgroup, too.
uint thread_index() {
    return gl_SubgroupID * gl_SubgroupSize + gl_SubgroupInvocationID;
}

#ifdef WITHIN_SUBGROUP  // a row has no more lanes than a subgroup
#define REDUCE_ROW(NAME, COMBINE)                                                       \
    vec2 NAME(vec2 value) {                                                             \
        [[unroll]] for (uint mask = 1; mask < LANES; mask *= 2) {                       \
            vec2 other = subgroupShuffleXor(value, mask);                               \
            value = COMBINE(value, other);                                              \
        }                                                                               \
        return value;                                                                   \
    }
#else
shared vec2 row_parts[THREADS];

// Sums, or the largest of the maxima, over the lanes of each row; every lane gets the result. All threads of the
// workgroup must come here together. The order of summation depends on LANES and the subgroup's size alone.
#define REDUCE_ROW(NAME, COMBINE)                                                       \
    vec2 NAME(vec2 value) {                                                             \
        uint lanes = min(LANES, gl_SubgroupSize);                                       \
        for (uint mask = 1; mask < lanes; mask *= 2) {                                  \
            vec2 other = subgroupShuffleXor(value, mask);                               \
            value = COMBINE(value, other);                                              \
        }                                                                               \
        if (LANES > gl_SubgroupSize) {                                                  \
            uint parts = LANES / gl_SubgroupSize;                                       \
            uint first = thread_index() / LANES * parts;                                \
            barrier();                                                                  \
            if (gl_SubgroupInvocationID == 0) {                                         \
                row_parts[gl_SubgroupID] = value;                                       \
            }                                                                           \
            barrier();                                                                  \
            uint count = min(parts, gl_SubgroupSize);                                   \
            uint part = gl_SubgroupInvocationID % count;                                \
            value = row_parts[first + part];                                            \
            for (part += count; part < parts; part += count) {                          \
                value = COMBINE(value, row_parts[first + part]);                        \
            }                                                                           \
            for (uint mask = 1; mask < count; mask *= 2) {                              \
                vec2 other = subgroupShuffleXor(value, mask);                           \
                value = COMBINE(value, other);                                          \
            }                                                                           \
        }                                                                               \
        return value;                                                                   \
    }
#endif

vec2 add_pairs(vec2 a, vec2 b) {
    return a + b;
}

// Pairs are (maximum, sum of exp(x - maximum)); (LOWEST, 0) is that of no element.
const float LOWEST = -3.4028235e38;

vec2 add_exponentials(vec2 a, vec2 b) {
    float largest = max(a.x, b.x);
    return vec2(largest, a.y * exp(a.x - largest) + b.y * exp(b.x - largest));
}

REDUCE_ROW(row_sums, add_pairs)
REDUCE_ROW(row_exponentials, add_exponentials)

float row_sum(float value) {
    return row_sums(vec2(value, 0.0)).x;
}
