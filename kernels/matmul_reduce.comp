// The second stage of a product whose sum over k was split: adds the parts in order and finishes the results.
//
//   c[i] = activation(sum over s of sums[s, i] + bias[i mod columns]) + residual[i]
//
// sums     float32 [splits, elements], elements = batches * rows * columns, from matmul_tiled or matmul_matrix
// c, preactivation, factor as in those, contiguous
// b_sums   with HAS_SUMS: column_sums [splits, columns], from there, too, added up
// numpy    c = activation(sums.sum(0) + bias) + residual; b_sums = column_sums.sum(0)
//
// A thread has four neighbours of one row, so C_VECTOR = 0 is for columns that are no multiple of 4, and then one each.
#version 460
#include "common.glsl"
#include "kernel.glsl"
#include "fresh.glsl"
#include "relay.glsl"
#include "matmul.glsl"

layout(local_size_x_id = 0) in;

const uint WIDTH = C_VECTOR != 0 ? 4 : 1;
const uint AT_ONCE = 12;  // parts that are on their way at a time

// The sum of the unit at `address` and of those `stride` elements apart, one for each split.
vec4 total(uint64_t address, uint stride) {
    vec4 sum = vec4(0.0);
    for (uint split = 0; split < splits; split += AT_ONCE) {
        vec4 parts[AT_ONCE];
        [[unroll]] for (uint i = 0; i < AT_ONCE; i++) {
            parts[i] = vec4(0.0);
            if (split + i < splits) {
                if (C_VECTOR != 0) parts[i] = fresh_f32x4(address, 0);
                else parts[i].x = fresh_f32(address, 0);
            }
            address += 4 * uint64_t(stride);
        }
        [[unroll]] for (uint i = 0; i < AT_ONCE; i++) sum += parts[i];
    }
    return sum;
}

void main() {
    relay_wait();
    uint units = elements / WIDTH, more = HAS_SUMS != 0 ? columns / WIDTH : 0;
    for (uint unit = gl_GlobalInvocationID.x; unit < units + more; unit += GRID_THREADS) {
        if (unit >= units) {
            uint64_t place = 4 * uint64_t(unit - units) * WIDTH;
            vec4 sum = total(uint64_t(column_sums) + place, columns);
            if (C_VECTOR != 0) f32x4_buffer(uint64_t(b_sums) + place).at[0] = sum;
            else f32_buffer(uint64_t(b_sums) + place).at[0] = sum.x;
            continue;
        }
        uint64_t place = uint64_t(unit) * WIDTH;
        uint column = unit * WIDTH % columns;
        if (C_VECTOR != 0) {
            Beside it = beside(place, column);  // is on its way while the parts are
            store_results(place, column, total(uint64_t(sums) + 4 * place, elements), it);
        } else {
            store_one(place, column, total(uint64_t(sums) + 4 * place, elements).x);
        }
    }
    relay_end();
}
