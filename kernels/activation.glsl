// Activations and their derivatives: `NAME` and `NAME_slope` of each one in alpha/activation.py, and for those that are
// `by_result` the derivative from the result, `NAME_slope_of_result`. From that table comes activation_kinds.glsl, with
// `activate` and `activation_slope` for the number KIND, a specialization constant.

const float GELU_SCALE = 0.7978845608028654;  // sqrt(2 / pi)
const float GELU_CUBIC = 0.044715;

float gelu(float x) {
    return x * accurate_logistic(2.0 * GELU_SCALE * x * (1.0 + GELU_CUBIC * x * x));
}

float gelu_slope(float x) {
    float tanh_inner = accurate_tanh(GELU_SCALE * x * (1.0 + GELU_CUBIC * x * x));
    float inner_slope = GELU_SCALE * (1.0 + 3.0 * GELU_CUBIC * x * x);
    return 0.5 + 0.5 * tanh_inner + 0.5 * x * (1.0 - tanh_inner * tanh_inner) * inner_slope;
}

float gelu_exact(float x) {
    return x * (0.5 + 0.5 * accurate_erf(0.7071067811865476 * x));
}

float gelu_exact_slope(float x) {
    return 0.5 + 0.5 * accurate_erf(0.7071067811865476 * x) + x * 0.3989422804014327 * accurate_exp(-0.5 * x * x);
}

float relu(float x) {
    return max(x, 0.0);
}

float relu_slope(float x) {
    return x > 0.0 ? 1.0 : 0.0;
}

float relu_slope_of_result(float y) {
    return relu_slope(y);
}

float relu2(float x) {
    return max(x, 0.0) * max(x, 0.0);
}

float relu2_slope(float x) {
    return 2.0 * max(x, 0.0);
}

float relu2_slope_of_result(float y) {
    return 2.0 * sqrt(y);
}

float silu(float x) {
    return x * accurate_logistic(x);
}

float silu_slope(float x) {
    float s = accurate_logistic(x);
    return s + x * s * (1.0 - s);
}

#include "activation_kinds.glsl"

vec4 activate(uint kind, vec4 x) {
    return vec4(activate(kind, x.x), activate(kind, x.y), activate(kind, x.z), activate(kind, x.w));
}

vec4 activation_slope(uint kind, vec4 x) {
    return vec4(
        activation_slope(kind, x.x), activation_slope(kind, x.y), activation_slope(kind, x.z), activation_slope(kind, x.w)
    );
}
