// y[i] = x[i, ids[i]].
//
// x: `count` rows of `width` elements, row_stride and stride apart; ids: `count`; y: `count`, of the element type of x. An
// id out of range takes the nearest element. numpy: take_along_axis(x, ids[..., None], axis=-1)[..., 0]

#version 460
#include "common.glsl"
#include "kernel.glsl"
layout(local_size_x_id = 0) in;

void main() {
    for (uint i = gl_GlobalInvocationID.x; i < count; i += GRID_THREADS) {
        uint column = uint(clamp(ids.at[i], 0, int(width) - 1));
        y.at[i] = x.at[i * row_stride + column * stride];
    }
}
