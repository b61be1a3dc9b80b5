// Heads of queries and keys, as query_key.comp and its gradient see them. Included after kernel.glsl, lanes.glsl and
// vectors.glsl; expects the specialization constants HALF, LANES, VECTOR, EACH, QUERIES, KEYS, NORM and ROTARY, and the
// push constants qkv, query_weight, key_weight, cosine, sine, rows, positions, table_batch_stride, table_stride, epsilon.
//
// A head is shared by LANES threads, each of which has COUNT vectors of its first half, and those of the same columns of
// the second. A thread has EACH heads on their way at a time.

const uint HEADS = QUERIES + KEYS, SLOTS = THREADS / LANES;
const uint COUNT = (HALF + LANES * VECTOR - 1) / (LANES * VECTOR);
const uint HELD = EACH * COUNT;

bool is_inside(uint column) {
    return HALF % (LANES * VECTOR) == 0 || column < HALF;  // the first is known when the kernel is compiled
}

// Where the head with this number begins in qkv, or in an array like it.
uint place_of(uint number) {
    return (number / HEADS * (HEADS + KEYS) + number % HEADS) * (2 * HALF);
}

// Where the angles of its position begin.
uint angles_of(uint number) {
    uint row = number / HEADS, sequence = row / positions;
    return (row - sequence * positions) * table_stride + sequence * table_batch_stride;
}

// Reads the lane's vectors of the head at `place`, as those with number e among EACH.
void read_head(JOIN(T, _buffer) from, uint place, uint e, uint lane, inout vec4 first[HELD], inout vec4 second[HELD]) {
    [[unroll]] for (uint k = 0; k < COUNT; ++k) {
        uint column = (k * LANES + lane) * VECTOR;
        first[e * COUNT + k] = is_inside(column) ? load_T(from, place + column) : vec4(0.0);
        second[e * COUNT + k] = is_inside(column) ? load_T(from, place + HALF + column) : vec4(0.0);
    }
}

// Its angles, if ROTARY = 1.
void read_angles(uint number, uint e, uint lane, inout vec4 cosines[HELD], inout vec4 sines[HELD]) {
    if (ROTARY == 0) return;
    uint place = angles_of(number);
    [[unroll]] for (uint k = 0; k < COUNT; ++k) {
        uint column = (k * LANES + lane) * VECTOR;
        cosines[e * COUNT + k] = is_inside(column) ? load_f32(cosine, place + column) : vec4(0.0);
        sines[e * COUNT + k] = is_inside(column) ? load_f32(sine, place + column) : vec4(0.0);
    }
}

// The weights of queries, or else of keys, in the lane's columns.
void read_weights(bool of_queries, uint lane, inout vec4 first[COUNT], inout vec4 second[COUNT]) {
    [[unroll]] for (uint k = 0; k < COUNT; ++k) {
        uint column = (k * LANES + lane) * VECTOR;
        first[k] = second[k] = vec4(1.0);
        if (NORM == 0 || !is_inside(column)) continue;
        first[k] = of_queries ? load_f32(query_weight, column) : load_f32(key_weight, column);
        second[k] = of_queries ? load_f32(query_weight, HALF + column) : load_f32(key_weight, HALF + column);
    }
}

// 1 / sqrt(mean of squares + epsilon), or 1 unless NORM = 1. All threads of the workgroup must come here together.
float scale_of(uint e, vec4 first[HELD], vec4 second[HELD]) {
    if (NORM == 0) return 1.0;
    precise float squares = 0.0;
    [[unroll]] for (uint k = 0; k < COUNT; ++k) {
        squares += dot(first[e * COUNT + k], first[e * COUNT + k]);
        squares += dot(second[e * COUNT + k], second[e * COUNT + k]);
    }
    return 1.0 / sqrt(row_sum(squares) * (1.0 / float(2 * HALF)) + epsilon);
}
