// What the backward pass of a linear layer does before its products: the gradient before the activation, and the
// column sums that become the bias's gradient.
//
//   dh[m, n] = dy[m, n] slope[m, n]                  (without HAS_SLOPE the slope is 1, and dh is dy, rounded)
//   sums[block, n] = sum over the block's rows of dh[m, n]
//
// dy, slope, dh   contiguous [rows, columns]; block `i` has the rows [i block_rows, (i + 1) block_rows)
// numpy           dh = dy * slope; sums = np.add.reduceat(dh, range(0, rows, block_rows))
//
// Workgroup (x, y) has 32 units of columns (a unit is four with VECTOR, else one) and block y. Its THREADS / 32 lines of
// threads take the block's rows in turn; their sums are added in the order of the lines.
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
    // Four rows are on their way at a time.
    for (uint row = begin + line; column < columns && row < end; row += 4 * LINES) {
        vec4 values[4];
        [[unroll]] for (uint i = 0; i < 4; i++) {
            values[i] = vec4(0.0);
            uint at = ((row + i * LINES) * columns + column) / width;
            if (row + i * LINES >= end) continue;
            if (VECTOR != 0) {
                values[i] = load(JOIN(DYTYPE, x4_buffer)(dy).at[at]);
                if (HAS_SLOPE != 0) values[i] *= load(JOIN(STYPE, x4_buffer)(slope).at[at]);
            } else {
                values[i].x = load(dy.at[at]);
                if (HAS_SLOPE != 0) values[i].x *= load(slope.at[at]);
            }
        }
        [[unroll]] for (uint i = 0; i < 4; i++) {
            sum += values[i];
            uint at = ((row + i * LINES) * columns + column) / width;
            if (HAS_DH == 0 || row + i * LINES >= end) continue;
            if (VECTOR != 0) store(JOIN(DHTYPE, x4_buffer)(dh).at[at], values[i]);
            else store(dh.at[at], values[i].x);
        }
    }
    if (HAS_SUMS == 0) return;
    parts[gl_LocalInvocationID.x] = sum;
    barrier();
    if (line != 0 || column >= columns) return;
    for (uint i = 1; i < LINES; i++) sum += parts[i * LANES + lane];
    for (uint i = 0; i < width; i++) sums.at[gl_WorkGroupID.y * columns + column + i] = sum[i];
}
