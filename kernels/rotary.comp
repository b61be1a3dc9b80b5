// Rotates the pairs (x[i], x[i + HALF]) of each head by the angle whose cosine and sine are given for its position
// (RoFormer, Su et al. 2021).
//
// x [B, T, heads, 2 HALF], strided along all axes but the last; cosine, sine [T, HALF], or [B, T, HALF], rows
// `table_stride` and sequences `table_batch_stride` apart (0 for all the same); y [B, T, heads, 2 HALF]. count: B T heads
// HALF.
//
// numpy: first, second = np.split(x, 2, axis=-1); c, s = cosine[:, None], sine[:, None]
//        y = np.concatenate([first * c - second * s, second * c + first * s], axis=-1)
#version 460
#include "common.glsl"
#include "kernel.glsl"
layout(local_size_x_id = 0) in;
#include "vectors.glsl"

void main() {
    for (uint i = gl_GlobalInvocationID.x * VECTOR; i < count; i += GRID_THREADS * VECTOR) {
        uint head = i / HALF, column = i % HALF;
        uint position = head / heads % positions, sequence = head / heads / positions;
        uint from = sequence * batch_stride + position * position_stride + head % heads * head_stride + column;
        uint table = sequence * table_batch_stride + position * table_stride + column;
        uint to = head * 2 * HALF + column;
        vec4 first = load_T(x, from), second = load_T(x, from + HALF);
        vec4 c = load_f32(cosine, table), s = load_f32(sine, table);
        store_T(y, to, first * c - second * s);
        store_T(y, to + HALF, second * c + first * s);
    }
}
