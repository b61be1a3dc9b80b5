// What the backward pass of a linear layer does before its products: the gradient before the activation, and the
// column sums that become the bias's gradient.
//
//   dh[m, n] = dy[m, n] slope[m, n]                        (slope 1 without HAS_SLOPE)
//   sums[block, n] = sum over the block's rows of dh[m, n]
//
// dy, slope, dh   contiguous [rows, columns]; block `i` has the rows [i block_rows, (i + 1) block_rows)
// numpy           dh = dy * slope; sums = np.add.reduceat(dh, range(0, rows, block_rows))
//
// Workgroup (x, y) has 32 units of columns (a unit is four with VECTOR, else one) and block y. Its THREADS / 32 lines of
// threads take every so manieth row; their sums are added in the order of the lines.
#version 460
#include "common.glsl"
#include "kernel.glsl"

layout(local_size_x_id = 0) in;

const uint LANES = 32, LINES = THREADS / LANES;

shared vec4 parts[HAS_SUMS != 0 ? THREADS : 1];

void main() {
    uint lane = gl_LocalInvocationID.x % LANES, line = gl_LocalInvocationID.x / LANES;
    uint width = VECTOR != 0 ? 4 : 1;
    uint column = (gl_WorkGroupID.x * LANES + lane) * width;
    uint begin = gl_WorkGroupID.y * block_rows, end = min(rows, begin + block_rows);
    vec4 sum = vec4(0.0);
    if (column < columns) {
        for (uint row = begin + line; row < end; row += LINES) {
            uint64_t index = uint64_t(row) * columns + column;
            if (VECTOR != 0) {
                vec4 value = load(JOIN(DYTYPE, x4_buffer)(dy).at[uint(index / 4)]);
                if (HAS_SLOPE != 0) value *= load(JOIN(STYPE, x4_buffer)(slope).at[uint(index / 4)]);
                if (HAS_DH != 0) store(JOIN(DHTYPE, x4_buffer)(dh).at[uint(index / 4)], value);
                sum += value;
            } else {
                float value = load(dy.at[uint(index)]);
                if (HAS_SLOPE != 0) value *= load(slope.at[uint(index)]);
                if (HAS_DH != 0) store(dh.at[uint(index)], value);
                sum.x += value;
            }
        }
    }
    if (HAS_SUMS == 0) return;
    parts[gl_LocalInvocationID.x] = sum;
    barrier();
    if (line != 0 || column >= columns) return;
    for (uint i = 1; i < LINES; i++) sum += parts[i * LANES + lane];
    for (uint i = 0; i < width; i++) sums.at[gl_WorkGroupID.y * columns + column + i] = sum[i];
}
