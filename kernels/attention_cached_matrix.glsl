// What the kernels attention_cached_matrix* share, so that a row has the same bits from each. Operands and results are those
// of attention_cached.glsl, with PART positions to a part.
//
// Of a part, scores are products of fragments along the width, in order; probabilities, relative to the largest score, are
// rounded to 16 bits, and multiplied with values in fragments along the positions, in order. A row of a product of
// fragments does not depend on the others, a largest score has no order, nor have sums of exponentials (see UNIT).
//
// Include after attention_cached.glsl and attention_numbers.glsl.

#define A_MATRIX coopmat<NUMBER, gl_ScopeSubgroup, FRAGMENT_M, FRAGMENT_K, gl_MatrixUseA>
#define B_MATRIX coopmat<NUMBER, gl_ScopeSubgroup, FRAGMENT_K, FRAGMENT_N, gl_MatrixUseB>
#define SUM_MATRIX coopmat<float, gl_ScopeSubgroup, FRAGMENT_M, FRAGMENT_N, gl_MatrixUseAccumulator>
#define EACH(e, MATRIX) [[unroll]] for (uint e = 0; e < MATRIX.length(); ++e)
#define MEET                       \
    subgroupMemoryBarrierShared(); \
    subgroupBarrier();

const uint DEPTHS = WIDTH / FRAGMENT_K;
const uint PART_DEPTHS = PART / FRAGMENT_K;

// Probabilities are at most 1, and rounded; as whole numbers of this they are added up without an error, of float16. Of
// bfloat16 what is below it is left out of each.
const float UNIT = 1.0 / 16777216.0;

uvec4 octet_of(uint64_t source, uint start, uint octet) { return u32x4_buffer(source).at[start / 8 + octet]; }

// Four scores by their products, of which those before `count` are seen; the first is number `from` of the part.
vec4 scores_of(uvec4 products, uint from, uint count) {
    precise const vec4 scaled = uintBitsToFloat(products) * query_factor();
    vec4 score;
    [[unroll]] for (uint c = 0; c < 4; ++c) score[c] = bounded_score(scaled[c], from + c < count);
    return score;
}

// Four probabilities as they are multiplied, and their sum in UNITs.
uvec2 probabilities_of(vec4 score, float maximum, inout uint sum) {
    const uvec2 rounded = pack_halves4(exp2(score - maximum));
    const uvec4 units = uvec4(unpack_halves4(rounded) / UNIT);
    sum += units.x + units.y + units.z + units.w;
    return rounded;
}
