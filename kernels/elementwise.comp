// y = OPERATION(a, b), elementwise, for strided and broadcast arrays and for numbers.
//
// a, b, y: arrays of any element type, strided as strided.glsl says; WIDTH 4 handles four neighbours at once, and then
// length0 and `count` count groups of four. A_KIND, B_KIND: an array; a number, in a_number or b_number; or in WIDTH 4
// an array that is the same for neighbours. INTEGER: the arithmetic is that of integers. y may be a or b.
// numpy: add(a, b), exp(a), a.astype(y.dtype) ...

#version 460
#include "common.glsl"
#include "kernel.glsl"
#include "elements.glsl"
#include "strided.glsl"
#include "operations.glsl"
layout(local_size_x_id = 0) in;

#define NUMBER 1u
#define SPREAD 2u

STRIDED(a, b, y)

uvec4 operand(u32_buffer from, uint offset, uint element, uint kind, uint number) {
    if (kind == NUMBER) return uvec4(number);
    return read_elements(from, offset, element, WIDTH == 4 && kind != SPREAD);
}

void main() {
    for (uint place = gl_GlobalInvocationID.x; place < count; place += GRID_THREADS) {
        uvec3 offset = offsets(place);
        uvec4 x = operand(a, offset.x, A_ELEMENT, A_KIND, a_number);
        uvec4 z = operand(b, offset.y, B_ELEMENT, B_KIND, b_number);
        uvec4 result = operate(OPERATION, INTEGER == 1, x, A_ELEMENT, z, B_ELEMENT, Y_ELEMENT);
        write_elements(y, offset.z, Y_ELEMENT, WIDTH == 4, result);
    }
}
