// loss = the sum of the losses / the number of rows that count, or 0 where none does; inverse_count = 1 / that number.
//
// losses, targets [rows], of which rows with a negative target do not count and have loss 0; loss, inverse_count [1].
// One workgroup does it all, in a fixed order.
//
// numpy: count = max(1, np.count_nonzero(targets >= 0)); losses.sum() / count, 1 / count
#version 460
#include "common.glsl"
#include "kernel.glsl"
layout(local_size_x_id = 0) in;

void main() {
    float sum = 0.0;
    uint counted = 0;
    for (uint row = gl_LocalInvocationIndex; row < rows; row += THREADS) {
        sum += losses.at[row];
        counted += targets.at[row] >= 0 ? 1 : 0;
    }
    float total = workgroup_sum(sum);
    float count = max(1.0, workgroup_sum(float(counted)));
    if (gl_LocalInvocationIndex == 0) {
        loss.at[0] = total / count;
        inverse_count.at[0] = 1.0 / count;
    }
}
