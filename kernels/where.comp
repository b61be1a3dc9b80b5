// y = condition ? a : b, elementwise, for strided and broadcast arrays and for numbers.
//
// condition: booleans; a, b: arrays of any element type, or numbers as in elementwise.comp; y: contiguous, `count`
// elements, four at once in WIDTH 4. numpy: where(condition, a, b)

#version 460
#include "common.glsl"
#include "kernel.glsl"
#include "elements.glsl"
#include "strided.glsl"
layout(local_size_x_id = 0) in;

#define NUMBER 1u
#define SPREAD 2u

STRIDED(condition, a, b)

uvec4 operand(u32_buffer from, uint offset, uint element, uint kind, uint number) {
    if (kind == NUMBER) return uvec4(number);
    return read_elements(from, offset, element, WIDTH == 4 && kind != SPREAD);
}

void main() {
    for (uint place = gl_GlobalInvocationID.x; place < count; place += GRID_THREADS) {
        uvec3 offset = offsets(place);
        uvec4 chosen = read_elements(condition, offset.x, B32, WIDTH == 4 && CONDITION_KIND != SPREAD);
        uvec4 x = operand(a, offset.y, A_ELEMENT, A_KIND, a_number);
        uvec4 z = operand(b, offset.z, B_ELEMENT, B_KIND, b_number);
        write_elements(y, place * WIDTH, Y_ELEMENT, WIDTH == 4, mix(z, x, notEqual(chosen, uvec4(0))));
    }
}
