// Numbers `place` to `place` + 7 of a head `width` wide, or only the first four or one of them, from its parts, which are
// `first`, first + 1 ...: partial [.., width] and statistics [.., 2] (maximum and sum); see attention_parts.glsl. Include
// after that and fresh.glsl.
const uint PARTS_AHEAD = 4;  // that are on their way at a time

mat2x4 attention_of_parts(
    f32_buffer partial, f32_buffer statistics, uint first, uint parts, uint width, uint place, uint numbers) {
    mat2x4 result = mat2x4(0.0);
    float maximum = NO_MAXIMUM, sum = 0.0;
    for (uint s = 0; s < parts; s += PARTS_AHEAD) {
        vec2 statistic[PARTS_AHEAD];
        mat2x4 values[PARTS_AHEAD];
        [[unroll]] for (uint i = 0; i < PARTS_AHEAD; ++i) {
            const uint part = first + min(s + i, parts - 1), start = part * width + place;
            statistic[i] = fresh_f32x2(uint64_t(statistics), part);
            values[i] = mat2x4(0.0);
            if (numbers == 1) values[i][0] = vec4(fresh_f32(uint64_t(partial), start));
            else values[i][0] = fresh_f32x4(uint64_t(partial), start / 4);
            if (numbers == 8) values[i][1] = fresh_f32x4(uint64_t(partial), start / 4 + 1);
        }
        [[unroll]] for (uint i = 0; i < PARTS_AHEAD; ++i) {
            if (s + i >= parts) continue;
            const float later = max(maximum, statistic[i].x);
            const float factor = shrunk(maximum, later), partial_factor = shrunk(statistic[i].x, later);
            [[unroll]] for (uint half_ = 0; half_ < 2; ++half_)
                [[unroll]] for (uint c = 0; c < 4; ++c)
                    result[half_][c] = joined(result[half_][c], factor, values[i][half_][c], partial_factor);
            sum = joined(sum, factor, statistic[i].y, partial_factor);
            maximum = later;
        }
    }
    return result * (1.0 / sum);
}
