// y[v, :] = the sum of the rows x[i, :] whose id is v, in the order in which they stand.
//
// x: rows of `width` units of T, four elements or one; sorted, starts: the rows by id, as sort_place.comp and
// sort_bounds.comp make them; y: [rows, width]. Where there is an addend [rows, width], it is added to y; it may be y. A
// workgroup makes one row, or as many columns of it as the grid says: COLUMNS invocations take neighbouring units, and
// THREADS / COLUMNS of these groups share out the rows that are summed. numpy: add.at(y, ids, x)

#version 460
#include "common.glsl"
#include "kernel.glsl"
layout(local_size_x_id = 0) in;

#define VALUE JOIN(T, _value)

shared VALUE parts[THREADS];

VALUE sum_of_rows(uint begin, uint end, uint column) {
    uint step = THREADS / COLUMNS;
    uint k = begin + gl_LocalInvocationID.x / COLUMNS;
    VALUE sum = VALUE(0.0);
    for (; k + 3 * step < end; k += 4 * step) {
        VALUE first = x.at[sorted.at[k] * width + column];
        VALUE second = x.at[sorted.at[k + step] * width + column];
        VALUE third = x.at[sorted.at[k + 2 * step] * width + column];
        VALUE fourth = x.at[sorted.at[k + 3 * step] * width + column];
        sum = sum + first + second + third + fourth;
    }
    for (; k < end; k += step) sum += x.at[sorted.at[k] * width + column];
    return sum;
}

void main() {
    uint thread = gl_LocalInvocationID.x;
    for (uint v = gl_WorkGroupID.x; v < rows; v += gl_NumWorkGroups.x) {
        uint begin = starts.at[v];
        uint end = starts.at[v + 1];
        for (uint first = gl_WorkGroupID.y * COLUMNS; first < width; first += gl_NumWorkGroups.y * COLUMNS) {
            uint column = first + thread % COLUMNS;
            VALUE sum = column < width ? sum_of_rows(begin, end, column) : VALUE(0.0);
            if (THREADS > COLUMNS && end - begin > 1) {
                parts[thread] = sum;
                barrier();
                if (thread < COLUMNS) {
                    for (uint other = thread + COLUMNS; other < THREADS; other += COLUMNS) sum += parts[other];
                }
                barrier();
            }
            if (thread < COLUMNS && column < width) {
                uint place = v * width + column;
                y.at[place] = uint64_t(addend) != 0 ? addend.at[place] + sum : sum;
            }
        }
    }
}
