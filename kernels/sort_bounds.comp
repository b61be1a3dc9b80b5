// Where each id begins among sorted ids: starts[v] = how many ids are below v, for v from 0 to `rows`.
//
// ids: `count`; sorted: their indices in the order of the ids; starts: `rows` + 1.
// numpy: searchsorted(ids[sorted], arange(rows + 1))

#version 460
#include "common.glsl"
#include "kernel.glsl"
layout(local_size_x_id = 0) in;

void main() {
    for (uint v = gl_GlobalInvocationID.x; v <= rows; v += GRID_THREADS) {
        uint low = 0;
        uint high = count;
        while (low < high) {
            uint middle = (low + high) / 2;
            uint id = uint(clamp(ids.at[sorted.at[middle]], 0, int(rows) - 1));
            if (id < v) low = middle + 1;
            else high = middle;
        }
        starts.at[v] = low;
    }
}
