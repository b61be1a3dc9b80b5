// The sum of a few numbers, with the same bits wherever it is computed. Include after common.glsl.

// The sum of `count` elements, for all invocations of a subgroup, which must come here together; each has eight on their
// way at a time. The order of summation depends on the subgroup's size alone.
float sum_by_subgroup(f32_buffer array, uint count) {
    float sum = 0.0;
    for (uint first = gl_SubgroupInvocationID; first < count; first += 8 * gl_SubgroupSize) {
        float parts[8];
        [[unroll]] for (uint k = 0; k < 8; ++k) {
            uint place = first + k * gl_SubgroupSize;
            parts[k] = place < count ? array.at[place] : 0.0;
        }
        [[unroll]] for (uint k = 0; k < 8; ++k) sum += parts[k];
    }
    return subgroupAdd(sum);
}
