// The second half of a pass of a stable radix sort of ids: the indices of the ids, in the order of their digits.
//
// ids, order, counts: as in sort_count.comp; sorted: `count`. A workgroup places one block of BLOCK ids. Equal digits stay
// in the order in which they stand. numpy: sorted = order[argsort(ids[order] >> shift & 255, kind="stable")]

#version 460
#include "common.glsl"
#include "kernel.glsl"
layout(local_size_x_id = 0) in;

#define DIGITS 256

shared uint totals[DIGITS];
shared uint starts[DIGITS];  // where the first id of this block with each digit goes
shared uint digits[BLOCK];

// How often a digit occurs in the blocks from `begin` to `end`.
uint occurrences(uint digit, uint begin, uint end) {
    uint sum = 0;
    for (uint block = begin; block < end; ++block) sum += counts.at[digit * gl_NumWorkGroups.x + block];
    return sum;
}

void main() {
    uint thread = gl_LocalInvocationID.x;
    uint begin = gl_WorkGroupID.x * BLOCK;
    uint length = min(BLOCK, count - begin);
    for (uint digit = thread; digit < DIGITS; digit += THREADS) {
        starts[digit] = occurrences(digit, 0, gl_WorkGroupID.x);
        totals[digit] = starts[digit] + occurrences(digit, gl_WorkGroupID.x, gl_NumWorkGroups.x);
    }
    for (uint k = thread; k < length; k += THREADS) {
        uint i = FIRST == 1 ? begin + k : order.at[begin + k];
        digits[k] = (uint(clamp(ids.at[i], 0, int(rows) - 1)) >> shift) & 255u;
    }
    barrier();
    for (uint digit = thread; digit < DIGITS; digit += THREADS) {
        uint smaller = 0;
        for (uint other = 0; other < digit; ++other) smaller += totals[other];
        starts[digit] += smaller;
    }
    barrier();
    for (uint k = thread; k < length; k += THREADS) {
        uint digit = digits[k];
        uvec4 equal_before = uvec4(0);
        uint other = 0;
        for (; other + 3 < k; other += 4) {
            uvec4 four = uvec4(digits[other], digits[other + 1], digits[other + 2], digits[other + 3]);
            equal_before += uvec4(equal(four, uvec4(digit)));
        }
        uint before = equal_before.x + equal_before.y + equal_before.z + equal_before.w;
        for (; other < k; ++other) before += digits[other] == digit ? 1 : 0;
        sorted.at[starts[digit] + before] = FIRST == 1 ? begin + k : order.at[begin + k];
    }
}
