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
#include "accurate.glsl"
layout(local_size_x_id = 0) in;

#define NUMBER 1u
#define SPREAD 2u

// In the order of ELEMENTWISE in alpha/backend_helios_primitives.py.
#define COPY 0u
#define ADD 1u
#define SUBTRACT 2u
#define MULTIPLY 3u
#define DIVIDE 4u
#define MAXIMUM 5u
#define MINIMUM 6u
#define GREATER 7u
#define EQUAL 8u
#define LOGICAL_AND 9u
#define ISFINITE 10u
#define EXP 11u
#define LOG 12u
#define SQRT 13u
#define TANH 14u
#define ERF 15u
#define SIGN 16u
#define ABSOLUTE 17u

#define EACH(FUNCTION, x) vec4(FUNCTION(x.x), FUNCTION(x.y), FUNCTION(x.z), FUNCTION(x.w))
#define EACH_PAIR(FUNCTION, x, y) vec4(FUNCTION(x.x, y.x), FUNCTION(x.y, y.y), FUNCTION(x.z, y.z), FUNCTION(x.w, y.w))

STRIDED(a, b, y)

// A NaN in either operand is the result, as in numpy.
float larger(float x, float y) {
    return x > y || is_nan(x) ? x : y;
}

float smaller(float x, float y) {
    return x < y || is_nan(x) ? x : y;
}

float sign_of(float x) {
    return x > 0.0 ? 1.0 : x < 0.0 ? -1.0 : x;
}

vec4 of_floats(vec4 x, vec4 y) {
    switch (OPERATION) {
        case ADD: return x + y;
        case SUBTRACT: return x - y;
        case MULTIPLY: return x * y;
        case DIVIDE: return EACH_PAIR(accurate_quotient, x, y);
        case MAXIMUM: return EACH_PAIR(larger, x, y);
        case MINIMUM: return EACH_PAIR(smaller, x, y);
        case GREATER: return vec4(greaterThan(x, y));
        case EQUAL: return vec4(equal(x, y));
        case LOGICAL_AND: return vec4(notEqual(x, vec4(0.0))) * vec4(notEqual(y, vec4(0.0)));
        case ISFINITE: return EACH(is_finite, x);
        case EXP: return EACH(accurate_exp, x);
        case LOG: return EACH(accurate_log, x);
        case SQRT: return EACH(accurate_sqrt, x);
        case TANH: return EACH(accurate_tanh, x);
        case ERF: return EACH(accurate_erf, x);
        case SIGN: return EACH(sign_of, x);
        case ABSOLUTE: return abs(x);
        default: return x;
    }
}

ivec4 of_integers(ivec4 x, ivec4 y) {
    switch (OPERATION) {
        case ADD: return x + y;
        case SUBTRACT: return x - y;
        case MULTIPLY: return x * y;
        case MAXIMUM: return max(x, y);
        case MINIMUM: return min(x, y);
        case GREATER: return ivec4(greaterThan(x, y));
        case EQUAL: return ivec4(equal(x, y));
        case LOGICAL_AND: return ivec4(notEqual(x, ivec4(0))) * ivec4(notEqual(y, ivec4(0)));
        case ISFINITE: return ivec4(1);
        case SIGN: return sign(x);
        case ABSOLUTE: return abs(x);
        default: return x;
    }
}

uvec4 operand(u32_buffer from, uint offset, uint element, uint kind, uint number) {
    if (kind == NUMBER) return uvec4(number);
    return read_elements(from, offset, element, WIDTH == 4 && kind != SPREAD);
}

void main() {
    for (uint place = gl_GlobalInvocationID.x; place < count; place += GRID_THREADS) {
        uvec3 offset = offsets(place);
        uvec4 x = operand(a, offset.x, A_ELEMENT, A_KIND, a_number);
        uvec4 z = operand(b, offset.y, B_ELEMENT, B_KIND, b_number);
        uvec4 result;
        if (INTEGER == 1) result = from_integers(of_integers(ivec4(x), ivec4(z)), Y_ELEMENT);
        else result = from_floats(of_floats(as_floats(x, A_ELEMENT), as_floats(z, B_ELEMENT)), Y_ELEMENT);
        write_elements(y, offset.z, Y_ELEMENT, WIDTH == 4, result);
    }
}
