// Attention from what attention_cached makes of the parts of a row's keys, with the same bits wherever it is computed:
//
//     sum_s exp2(maximum_s - maximum) partial_s / sum_s exp2(maximum_s - maximum) sum_s
//
// Numbers `place` to `place` + 7 of a head `width` wide, or only the first four or one of them; its parts are `first`, first
// + 1 ... partial [.., width] and statistics [.., 2] (maximum and sum). Include after fresh.glsl.
const uint PARTS_AHEAD = 4;  // that are on their way at a time

void read_statistics(f32_buffer statistics, uint first, uint from, uint parts, out vec2 statistic[PARTS_AHEAD]) {
    [[unroll]] for (uint i = 0; i < PARTS_AHEAD; ++i)
        statistic[i] = fresh_f32x2(uint64_t(statistics), first + min(from + i, parts - 1));
}

mat2x4 attention_of_parts(
    f32_buffer partial, f32_buffer statistics, uint first, uint parts, uint width, uint place, uint numbers) {
    vec2 statistic[PARTS_AHEAD];
    float maximum = uintBitsToFloat(0xff800000u);
    for (uint s = 0; s < parts; s += PARTS_AHEAD) {
        read_statistics(statistics, first, s, parts, statistic);
        [[unroll]] for (uint i = 0; i < PARTS_AHEAD; ++i) maximum = max(maximum, statistic[i].x);
    }
    mat2x4 result = mat2x4(0.0);
    float sum = 0.0;
    for (uint s = 0; s < parts; s += PARTS_AHEAD) {
        if (parts > PARTS_AHEAD) read_statistics(statistics, first, s, parts, statistic);
        mat2x4 values[PARTS_AHEAD];
        [[unroll]] for (uint i = 0; i < PARTS_AHEAD; ++i) {
            const uint start = (first + min(s + i, parts - 1)) * width + place;
            values[i] = mat2x4(0.0);
            if (numbers == 1) values[i][0] = vec4(fresh_f32(uint64_t(partial), start));
            else values[i][0] = fresh_f32x4(uint64_t(partial), start / 4);
            if (numbers == 8) values[i][1] = fresh_f32x4(uint64_t(partial), start / 4 + 1);
        }
        [[unroll]] for (uint i = 0; i < PARTS_AHEAD; ++i) {
            if (s + i >= parts) continue;
            const float factor = exp2(statistic[i].x - maximum);
            [[unroll]] for (uint half_ = 0; half_ < 2; ++half_)
                result[half_] = fma(vec4(factor), values[i][half_], result[half_]);
            sum = fma(factor, statistic[i].y, sum);
        }
    }
    return mat2x4(result[0] / sum, result[1] / sum);
}
