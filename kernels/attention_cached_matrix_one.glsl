// What attention_cached_matrix.comp and attention_cached_matrix_subgroup.comp, where subgroups have a row each, share beyond
// attention_cached_matrix.glsl. A row is a fragment of FRAGMENT_M equal ones, in shared memory once: lines of it are no step
// apart. Include after the declaration of `memory`, shared memory in units of four words.

const uint ROW_LANES = SUBGROUP_SIZE < PART / 4 ? SUBGROUP_SIZE : PART / 4, ROW_QUADS = PART / 4 / ROW_LANES;

// Makes probabilities, at unit `probabilities`, of the products of a query and the keys of a part, at unit `products`, of
// which `count` are seen; the largest score and the sum of exponentials.
vec2 make_probabilities(uint products, uint probabilities, uint count) {
    const uint lane = gl_SubgroupInvocationID;
    vec4 score[ROW_QUADS];
    float maximum = LOWEST;
    [[unroll]] for (uint i = 0; i < ROW_QUADS; ++i) {
        const uint quad = i * ROW_LANES + lane % ROW_LANES;
        score[i] = scores_of(memory[products + quad], quad * 4, count);
        maximum = max(maximum, max(max(score[i].x, score[i].y), max(score[i].z, score[i].w)));
    }
    maximum = subgroupMax(maximum);
    uint sum = 0;
    [[unroll]] for (uint i = 0; i < ROW_QUADS; ++i) {
        const uint quad = i * ROW_LANES + lane % ROW_LANES, place = probabilities + quad / 2;
        const uvec2 rounded = probabilities_of(score[i], maximum, sum);
        if (quad % 2 == 0) memory[place].xy = rounded;
        else memory[place].zw = rounded;
    }
    sum = subgroupAdd(lane < ROW_LANES ? sum : 0);
    return vec2(maximum, float(sum) * UNIT);
}

// Writes `quads` quads of a result from quad `first` on, which are at unit `source`, as number `place` of all parts, or of
// all rows' heads; and the part's statistics if `has_statistics`.
void write_part(uint place, uint source, uint first, uint quads, vec2 statistic, bool has_statistics) {
    for (uint quad = gl_SubgroupInvocationID; quad < quads; quad += SUBGROUP_SIZE) {
        const vec4 numbers = uintBitsToFloat(memory[source + quad]);
        if (SPLIT == 1) write_quad(partial, place * WIDTH, first + quad, numbers);
        else write_result(place * WIDTH, first + quad, numbers * (1.0 / statistic.y));
    }
    if (SPLIT == 1 && has_statistics) {
        statistics.at[place * 2] = statistic.x;
        statistics.at[place * 2 + 1] = statistic.y;
    }
}
