// What the attention kernels on matrix units share: fragments, operands rounded to 16 bits on their way to shared memory,
// and the subgroup's scratch memory.
//
// Which invocation holds which number of a fragment is the device's secret, so what is done with single scores is done
// by way of the scratch: the rows of a fragment are dealt to the invocations, LANES to a row, each with a range of
// neighbouring columns.
//
// Include after attention.glsl. Expects what attention_numbers.glsl does, the specialization constants FRAGMENT_M, _N and
// _K (rows of A, columns of B, depth) and INDEPENDENT (0 where subgroupBarrier() waits for the whole workgroup, as in
// Mesa's lavapipe, so that every subgroup must meet as many of them).

#include "attention_numbers.glsl"

#define A_MATRIX coopmat<NUMBER, gl_ScopeSubgroup, FRAGMENT_M, FRAGMENT_K, gl_MatrixUseA>
#define B_MATRIX coopmat<NUMBER, gl_ScopeSubgroup, FRAGMENT_K, FRAGMENT_N, gl_MatrixUseB>
#define SUM_MATRIX coopmat<float, gl_ScopeSubgroup, FRAGMENT_M, FRAGMENT_N, gl_MatrixUseAccumulator>

const uint LANES = SUBGROUP_SIZE / FRAGMENT_M;
const uint DEPTHS = PADDED / FRAGMENT_K, COLUMNS = PADDED / FRAGMENT_N;  // fragments across a head

#define LANE_ROW (gl_SubgroupInvocationID % FRAGMENT_M)
#define LANE_PART (gl_SubgroupInvocationID / FRAGMENT_M)

uvec4 pack_octet(vec4 low, vec4 high) {
    return uvec4(pack_pair(low.xy), pack_pair(low.zw), pack_pair(high.xy), pack_pair(high.zw));
}

// Numbers 8 octet to 8 octet + 7 of the row that begins at element `start`; 0 beyond the width.
uvec4 read_octet(JOIN(T, _buffer) source, uint start, uint octet) {
    return pack_octet(read_quad(source, start, 2 * octet), read_quad(source, start, 2 * octet + 1));
}

uvec4 read_float_octet(f32_buffer source, uint start, uint octet) {
    return pack_octet(read_float_quad(source, start, 2 * octet), read_float_quad(source, start, 2 * octet + 1));
}

// Over the LANES of a row.
float row_max(float value) {
    [[unroll]] for (uint apart = FRAGMENT_M; apart < SUBGROUP_SIZE; apart *= 2)
        value = max(value, subgroupShuffleXor(value, apart));
    return value;
}

float row_sum(float value) {
    [[unroll]] for (uint apart = FRAGMENT_M; apart < SUBGROUP_SIZE; apart *= 2) value += subgroupShuffleXor(value, apart);
    return value;
}

// FRAGMENT_M rows of a head, in fragments MATRICES[FIRST] to MATRICES[FIRST + COLUMNS - 1], to memory by way of the scratch
// of SCRATCH_COLUMNS columns: row r times FACTOR(r) goes to element START(r) of TARGET if EXISTS(r).
#define WRITE_ROWS(MATRICES, FIRST, TARGET, START, EXISTS, FACTOR)                                                        \
    [[unroll]] for (uint column = 0; column < PADDED; column += SCRATCH_COLUMNS) {                                        \
        subgroupBarrier();                                                                                                \
        [[unroll]] for (uint n = column / FRAGMENT_N; n < min(PADDED, column + SCRATCH_COLUMNS) / FRAGMENT_N; ++n)        \
            coopMatStore(MATRICES[(FIRST) + n], scratch, scratch_start + (n * FRAGMENT_N - column) / 4, SCRATCH_PITCH,    \
                         ROW_MAJOR);                                                                                      \
        subgroupBarrier();                                                                                                \
        for (uint i = gl_SubgroupInvocationID; i < FRAGMENT_M * SCRATCH_COLUMNS / 4; i += SUBGROUP_SIZE) {                \
            uint r = i / (SCRATCH_COLUMNS / 4), quad = i % (SCRATCH_COLUMNS / 4);                                         \
            vec4 numbers = scratch[scratch_start + r * SCRATCH_PITCH + quad] * (FACTOR(r));                               \
            if (EXISTS(r)) write_quad(TARGET, START(r), column / 4 + quad, numbers);                                      \
        }                                                                                                                 \
    }
