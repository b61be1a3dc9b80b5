// target[ids[i], :] = rows[i, :], in place.
//
// target: rows of `width` units, one right after the other, `target_rows` of them; ids: `count`; rows: `count`, `stride`
// units apart. A unit, T, is four elements or one; only its size matters. An id out of range goes nowhere. Of several rows
// with one id, any one may come to stand there.
// numpy: target[ids] = rows

#version 460
#include "common.glsl"
#include "kernel.glsl"
layout(local_size_x_id = 0) in;

void main() {
    uint total = count * width;
    for (uint place = gl_GlobalInvocationID.x; place < total; place += GRID_THREADS) {
        uint i = place / width, unit = place - i * width;
        uint id = uint(ids.at[i]);
        if (id < target_rows) target.at[id * width + unit] = rows.at[i * stride + unit];
    }
}
