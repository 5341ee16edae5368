// The pointwise activations in vectors. Each passes a NaN on. Internal linkage: see vector/scalar.h.
#ifndef GRAFT_TOPK_FEED_FORWARD_ACTIVATE_H_
#define GRAFT_TOPK_FEED_FORWARD_ACTIVATE_H_

#include "../vector/math.h"
#include "problem.h"

namespace graft {
namespace {

// z / (1 + e^-scale·z)
template <class V>
inline typename V::F swish(typename V::F z, float scale) {
  const typename V::F slope = V::max(V::mul(z, V::set1(scale)), V::set1(-88.0f));
  return V::div(z, V::add(V::set1(1.0f), vexp<V>(V::sub(V::set1(0.0f), slope))));
}

template <class V>
inline typename V::F half_share(typename V::F z, typename V::F share) {  // z/2 · (1 + share)
  return V::mul(V::mul(z, V::set1(0.5f)), V::add(share, V::set1(1.0f)));
}

template <class V>
inline typename V::F tanh_gelu(typename V::F z) {
  const typename V::F cubed = V::mul(V::mul(z, z), z);
  return half_share<V>(z, vtanh<V>(V::mul(V::set1(0.7978845608f), V::fma(cubed, V::set1(0.044715f), z))));
}

// z·tanh(log(1 + w)), w = e^z; from 20 on the factor is 1, and w² must not overflow.
template <class V>
inline typename V::F vmish(typename V::F z) {
  const typename V::F w = vexp<V>(V::blend(V::gt(z, V::set1(20.0f)), V::set1(20.0f), z));
  const typename V::F n = V::mul(w, V::add(w, V::set1(2.0f)));
  return V::mul(z, V::div(n, V::add(n, V::set1(2.0f))));
}

template <class V>
inline typename V::F activate(Activation kind, typename V::F z) {
  const typename V::F positive = V::max(V::set1(0.0f), z);
  switch (kind) {
    case Activation::relu: return positive;
    case Activation::relu_squared: return V::mul(positive, positive);
    case Activation::gelu: return half_share<V>(z, verf<V>(V::mul(z, V::set1(0.70710678f))));
    case Activation::gelu_tanh: return tanh_gelu<V>(z);
    case Activation::gelu_quick: return swish<V>(z, 1.702f);
    case Activation::silu: return swish<V>(z, 1.0f);
    case Activation::mish: return vmish<V>(z);
  }
  return z;
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_TOPK_FEED_FORWARD_ACTIVATE_H_
