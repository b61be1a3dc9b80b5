// The elementwise operations, by their codes. Include after elements.glsl.

#include "accurate.glsl"

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

vec4 of_floats(uint operation, vec4 x, vec4 y) {
    switch (operation) {
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

ivec4 of_integers(uint operation, ivec4 x, ivec4 y) {
    switch (operation) {
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

// The bits of operation(x, y), given those of x and y. `integer`: the arithmetic is that of integers.
uvec4 operate(uint operation, bool integer, uvec4 x, uint x_element, uvec4 y, uint y_element, uint result_element) {
    if (integer) return from_integers(of_integers(operation, ivec4(x), ivec4(y)), result_element);
    return from_floats(of_floats(operation, as_floats(x, x_element), as_floats(y, y_element)), result_element);
}
