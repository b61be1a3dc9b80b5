// p (1 - lr weight_decay) - lr step: a step of gradient descent with decoupled weight decay (Loshchilov and Hutter 2019).
vec4 decayed(vec4 parameter, vec4 step, float rate, float weight_decay) {
    return parameter - rate * weight_decay * parameter - rate * step;
}
