// Attention from what attention_cached makes of the parts of a row's keys, with the same bits wherever it is computed:
//
//     sum_s exp2(maximum_s - maximum) partial_s / sum_s exp2(maximum_s - maximum) sum_s
//
// Numbers `place` to `place` + 3 of a head `width` wide, or only the first of them; its parts are `first`, first + 1 ...
// partial [.., width] and statistics [.., 2] (maximum and sum); a part without keys has a sum of 0, and no numbers.
// Include after fresh.glsl.
vec4 attention_of_parts(f32_buffer partial, f32_buffer statistics, uint first, uint parts, uint width, uint place, bool one) {
    const uint AHEAD = 8;  // parts that are on their way at a time
    float maximum = uintBitsToFloat(0xff800000u);
    for (uint s = 0; s < parts; s += AHEAD) {
        float largest[AHEAD];
        [[unroll]] for (uint i = 0; i < AHEAD; ++i) largest[i] = statistics.at[(first + min(s + i, parts - 1)) * 2];
        [[unroll]] for (uint i = 0; i < AHEAD; ++i) maximum = max(maximum, largest[i]);
    }
    vec4 result = vec4(0.0);
    float sum = 0.0;
    for (uint s = 0; s < parts; s += AHEAD) {
        vec2 statistic[AHEAD];
        vec4 value[AHEAD];
        [[unroll]] for (uint i = 0; i < AHEAD; ++i) {
            statistic[i] = vec2(0.0);
            if (s + i < parts) statistic[i] = fresh_f32x2(uint64_t(statistics), first + s + i);
        }
        [[unroll]] for (uint i = 0; i < AHEAD; ++i) {
            const uint start = (first + s + i) * width + place;
            value[i] = vec4(0.0);
            if (statistic[i].y == 0.0) continue;
            value[i] = one ? vec4(fresh_f32(uint64_t(partial), start)) : fresh_f32x4(uint64_t(partial), start / 4);
        }
        [[unroll]] for (uint i = 0; i < AHEAD; ++i) {
            if (statistic[i].y == 0.0) continue;
            const float factor = exp2(statistic[i].x - maximum);
            result = fma(vec4(factor), value[i], result);
            sum = fma(factor, statistic[i].y, sum);
        }
    }
    return result / sum;
}
