// y = the transposed of x, both of 16-bit elements: through shared memory, in tiles of 64 x 64, so that lines of both are
// read and written whole.
//
// x [rows, columns], lines `stride` elements apart; y [columns, rows], without gaps. With VECTOR = 1 lines start at multiples
// of eight elements, and eight are read and written at a time.
//
// numpy: y = x.T
#version 460
#include "common.glsl"
#include "kernel.glsl"
layout(local_size_x_id = 0) in;

const uint TILE = 64, UNIT = 8, PASS = THREADS / (TILE / UNIT);  // lines of a tile that are moved at a time
// An odd number of words to a line: what a thread collects of eight lines is in different banks for its neighbours.
const uint LINE = TILE + 2;

shared uint16_t tile[TILE * LINE];

void main() {
    uint first_row = gl_WorkGroupID.y * TILE, first_column = gl_WorkGroupID.x * TILE;
    uint line = gl_LocalInvocationID.x / (TILE / UNIT), start = gl_LocalInvocationID.x % (TILE / UNIT) * UNIT;
    for (uint at = line; at < TILE; at += PASS) {
        uint row = first_row + at, column = first_column + start;
        uint16_t values[UNIT];
        if (VECTOR == 1 && row < rows && column < columns) {
            uvec4 words = u32x4_buffer(uint64_t(x) + 2 * (uint64_t(row) * stride + column)).at[0];
            [[unroll]] for (uint i = 0; i < UNIT; ++i) values[i] = uint16_t(words[i / 2] >> 16 * (i % 2) & 0xffffu);
        } else {
            [[unroll]] for (uint i = 0; i < UNIT; ++i)
                values[i] = row < rows && column + i < columns ? x.at[row * stride + column + i] : uint16_t(0);
        }
        [[unroll]] for (uint i = 0; i < UNIT; ++i) tile[at * LINE + start + i] = values[i];
    }
    barrier();
    for (uint at = line; at < TILE; at += PASS) {
        uint row = first_column + at, column = first_row + start;  // of y
        if (row >= columns || column >= rows) continue;
        uint16_t values[UNIT];
        [[unroll]] for (uint i = 0; i < UNIT; ++i) values[i] = tile[(start + i) * LINE + at];
        if (VECTOR == 1) {
            uvec4 words;
            [[unroll]] for (uint i = 0; i < UNIT / 2; ++i)
                words[i] = uint(values[2 * i]) | uint(values[2 * i + 1]) << 16;
            u32x4_buffer(uint64_t(y) + 2 * (uint64_t(row) * rows + column)).at[0] = words;
        } else {
            [[unroll]] for (uint i = 0; i < UNIT; ++i)
                if (column + i < rows) y.at[row * rows + column + i] = values[i];
        }
    }
}
