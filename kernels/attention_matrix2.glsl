// What the attention kernels that keep scores in registers share: fragments of cooperative matrices with the operations
// of VK_NV_cooperative_matrix2 (conversion of sums to operands, reductions of rows, a function for each element), and
// tiles of tokens that are fetched from memory while the tile before is worked on.
//
// Include after attention.glsl. Expects what attention_numbers.glsl does, the specialization constants FRAGMENT (rows,
// columns and depth of all fragments) and STAGES (tiles of tokens that shared memory holds), the shared array `tiles`, and
// the element types T of queries, keys and values, G of gradients and R of results.

#include "attention_numbers.glsl"
#include "halves.glsl"

#define A_MATRIX coopmat<NUMBER, gl_ScopeSubgroup, FRAGMENT, FRAGMENT, gl_MatrixUseA>
#define B_MATRIX coopmat<NUMBER, gl_ScopeSubgroup, FRAGMENT, FRAGMENT, gl_MatrixUseB>
#define SUM_MATRIX coopmat<float, gl_ScopeSubgroup, FRAGMENT, FRAGMENT, gl_MatrixUseAccumulator>
#define EACH(e, MATRIX) [[unroll]] for (uint e = 0; e < MATRIX.length(); ++e)

#define MOST(a, b) ((a) > (b) ? (a) : (b))  // max() is no constant expression

const uint PARTS = PADDED / FRAGMENT;  // fragments across a head

// Results leave by way of `tiles`, a column of fragments at a time.
const uint RESULT_PITCH = FRAGMENT / 4 + 1;
const uint RESULT_UNITS = SUBGROUPS * FRAGMENT * RESULT_PITCH;

float larger(const in float a, const in float b) { return max(a, b); }
float added(const in float a, const in float b) { return a + b; }

// Numbers 8 octet to 8 octet + 7 of the row that begins at element `start`, as 16-bit numbers; 0 beyond the width.
#define DEFINE_READ_OCTET(NAME, TYPE, BITS)                                                                               \
    uvec4 NAME(JOIN(TYPE, _buffer) source, uint start, uint octet) {                                                      \
        if (BITS == 16 && ALIGNED == 1 && WIDTH % 8 == 0)                                                                 \
            return octet * 8 < WIDTH ? u32x4_buffer(source).at[start / 8 + octet] : uvec4(0);                             \
        uvec4 numbers = uvec4(0);                                                                                         \
        if (ALIGNED == 1) {                                                                                               \
            [[unroll]] for (uint half_octet = 0; half_octet < 2; ++half_octet) {                                          \
                uint quad = 2 * octet + half_octet;                                                                       \
                if (quad >= QUADS) continue;                                                                              \
                vec4 four = load(JOIN(TYPE, x4_buffer)(source).at[start / 4 + quad]);                                     \
                numbers[2 * half_octet] = pack_pair(four.xy);                                                             \
                numbers[2 * half_octet + 1] = pack_pair(four.zw);                                                         \
            }                                                                                                             \
            return numbers;                                                                                               \
        }                                                                                                                 \
        for (uint i = 0; i < 8; ++i)                                                                                      \
            if (octet * 8 + i < WIDTH)                                                                                    \
                numbers[i / 2] |= pack_pair(vec2(load(source.at[start + octet * 8 + i]), 0.0)) << 16 * (i % 2);           \
        return numbers;                                                                                                   \
    }
DEFINE_READ_OCTET(read_octet, T, T_BITS)
#if GRADIENTS
DEFINE_READ_OCTET(read_gradient_octet, G, T_BITS)

// The sum of attention_delta.comp for query t of a head. With OWN_DELTA there was no such kernel, and `delta` is the address
// of what attention made, of the gradient's shape and type.
float delta_of(uint flat_head, uint t) {
    if (OWN_DELTA == 0) return delta.at[flat_head * query_length + t];
    const uint start = ((flat_head / QUERY_HEADS * query_length + t) * QUERY_HEADS + flat_head % QUERY_HEADS) * WIDTH;
    float sum = 0.0;
    [[unroll]] for (uint octet = 0; octet < OCTETS; ++octet) {
        uvec4 made = read_gradient_octet(JOIN(G, _buffer)(uint64_t(delta)), start, octet);
        uvec4 slope = read_gradient_octet(gradient, start, octet);
        [[unroll]] for (uint i = 0; i < 4; ++i) sum += dot(unpack_halves(made[i]), unpack_halves(slope[i]));
    }
    return sum;
}
#endif

// Four numbers of the row that begins at element `start`, as far as they exist.
void write_result(JOIN(R, _buffer) target, uint start, uint quad, vec4 numbers) {
    if (ALIGNED == 1) {
        if (quad < QUADS) store(JOIN(R, x4_buffer)(target).at[start / 4 + quad], numbers);
    } else {
        for (uint i = 0; i < 4; ++i)
            if (quad * 4 + i < WIDTH) store(target.at[start + quad * 4 + i], numbers[i]);
    }
}

// FRAGMENT rows of a head, in fragments MATRICES[FIRST] to MATRICES[FIRST + PARTS - 1], to memory: row r to element
// START(r) of TARGET if EXISTS(r). `tiles` must not be in use.
#define WRITE_RESULT(MATRICES, FIRST, TARGET, START, EXISTS)                                                              \
    [[unroll]] for (uint n = 0; n < PARTS; ++n) {                                                                         \
        const uint result_start = gl_SubgroupID * FRAGMENT * RESULT_PITCH;                                                \
        subgroupBarrier();                                                                                                \
        coopMatStore(MATRICES[(FIRST) + n], tiles, result_start, RESULT_PITCH, ROW_MAJOR);                                \
        subgroupMemoryBarrierShared();                                                                                    \
        subgroupBarrier();                                                                                                \
        for (uint i = gl_SubgroupInvocationID; i < FRAGMENT * FRAGMENT / 4; i += SUBGROUP_SIZE) {                         \
            uint r = i / (FRAGMENT / 4), quad = i % (FRAGMENT / 4);                                                       \
            vec4 numbers = uintBitsToFloat(tiles[result_start + r * RESULT_PITCH + quad]);                                \
            if (EXISTS(r)) write_result(TARGET, START(r), n * FRAGMENT / 4 + quad, numbers);                              \
        }                                                                                                                 \
    }

// Tiles of LENGTH tokens, of two arrays each: tile n is in shared memory while it is worked on, and the next one on its
// way there in registers. DECLARE_TILES(LENGTH) is for the kernel's own constants, DECLARE_NEXT() for main().
// FETCH(FIRST, END) reads the tokens FIRST to END - 1, as FIRST_OCTET(t, octet) and SECOND_OCTET(t, octet), which the
// kernel defines, say; PLACE(STAGE_INDEX) puts them where the stage begins, the second array behind the first.
#define DECLARE_TILES(LENGTH)                                                                                             \
    const uint STAGE = 2 * LENGTH * PITCH;                                                                                \
    const uint UNITS = LENGTH * OCTETS, FETCHES = (UNITS + THREADS - 1) / THREADS;
#define DECLARE_NEXT() uvec4 next_first[FETCHES], next_second[FETCHES];
#define FETCH(FIRST, END)                                                                                                 \
    [[unroll]] for (uint i = 0; i < FETCHES; ++i) {                                                                       \
        uint unit = i * THREADS + gl_LocalInvocationIndex, octet = unit % OCTETS, t = (FIRST) + unit / OCTETS;            \
        next_first[i] = next_second[i] = uvec4(0);                                                                        \
        if (unit < UNITS && t < (END)) {                                                                                  \
            next_first[i] = FIRST_OCTET(t, octet);                                                                        \
            next_second[i] = SECOND_OCTET(t, octet);                                                                      \
        }                                                                                                                 \
    }
#define PLACE(STAGE_INDEX)                                                                                                \
    [[unroll]] for (uint i = 0; i < FETCHES; ++i) {                                                                       \
        uint unit = i * THREADS + gl_LocalInvocationIndex;                                                                \
        uint at = (STAGE_INDEX) * STAGE + unit / OCTETS * PITCH + unit % OCTETS;                                          \
        if (unit < UNITS) {                                                                                               \
            tiles[at] = next_first[i];                                                                                    \
            tiles[at + STAGE / 2] = next_second[i];                                                                       \
        }                                                                                                                 \
    }
