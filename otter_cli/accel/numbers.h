// Numbers in single precision, bfloat16 and IEEE half precision, and dot products of any two.
// Sums are in single precision. Without the processor's instructions for bfloat16 and half
// precision the same is computed by shifts, and by arithmetic on the bits.
#ifndef OTTER_NUMBERS_H
#define OTTER_NUMBERS_H

#include <cstdint>
#include <cstring>
#ifdef __F16C__
#include <immintrin.h>
#endif

namespace {

constexpr int64_t LANES = 16;
typedef float Lanes __attribute__((vector_size(LANES * sizeof(float))));
typedef uint32_t Pairs __attribute__((vector_size(LANES * sizeof(uint32_t))));
typedef uint16_t Sixteen __attribute__((vector_size(LANES * sizeof(uint16_t))));
typedef float Eight __attribute__((vector_size(8 * sizeof(float))));
typedef float Four __attribute__((vector_size(4 * sizeof(float))));

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// The dtypes as native_library.py numbers them.
enum Dtype : int64_t { FLOAT32, BFLOAT16, FLOAT16 };

inline float from_bits(uint32_t bits) {
  float number;
  std::memcpy(&number, &bits, sizeof number);
  return number;
}
inline uint32_t bits_of(float number) {
  uint32_t bits;
  std::memcpy(&bits, &number, sizeof bits);
  return bits;
}

inline float widened(float number) { return number; }
inline float widened(BFloat16 number) { return from_bits(uint32_t(number.bits) << 16); }
inline float widened(Float16 number) {
#ifdef __F16C__
  return _cvtsh_ss(number.bits);
#else
  const uint32_t sign = uint32_t(number.bits & 0x8000) << 16, rest = (number.bits & 0x7fff) << 13;
  if (rest >= 0x0f800000) return from_bits(sign | 0x7f800000 | rest);  // infinity and NaN
  return from_bits(sign | bits_of(from_bits(rest) * 0x1p112f));  // exponents differ by 112
#endif
}

// To the nearest number, halfway to the even one.
inline void round_to(float number, float &to) { to = number; }
inline void round_to(float number, BFloat16 &to) {
  const uint32_t bits = bits_of(number);
  const bool nan = (bits & 0x7fffffff) > 0x7f800000;
  to.bits = nan ? (bits >> 16) | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
inline void round_to(float number, Float16 &to) {
#ifdef __F16C__
  to.bits = _cvtss_sh(number, 0);
#else
  const uint32_t bits = bits_of(number) & 0x7fffffff, sign = bits_of(number) >> 16 & 0x8000;
  if (bits > 0x7f800000)
    to.bits = sign | 0x7e00;
  else if (bits >= 0x477ff000)  // 65520 and more become infinity
    to.bits = sign | 0x7c00;
  else if (bits < 0x38800000)  // a half has no exponent so small; the last bit of .5 is 2^-24
    to.bits = sign | (bits_of(from_bits(bits) + 0.5f) - 0x3f000000);
  else
    to.bits = sign | (bits - 0x38000000 + 0xfff + (bits >> 13 & 1)) >> 13;
#endif
}

template <typename Many>
inline Many load(const void *at) {
  Many lanes;
  std::memcpy(&lanes, at, sizeof lanes);
  return lanes;
}

// A vector register of consecutive numbers, in single precision.
inline Lanes lanes(const float *at) { return load<Lanes>(at); }
inline Lanes lanes(const BFloat16 *at) {
  return (Lanes)(__builtin_convertvector(load<Sixteen>(at), Pairs) << 16);
}
inline Lanes lanes(const Float16 *at) {
#ifdef __AVX512F__
  return (Lanes)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(at)));
#else
  float numbers[LANES];
  for (int64_t i = 0; i < LANES; ++i) numbers[i] = widened(at[i]);
  return load<Lanes>(numbers);
#endif
}

// The first numbers of pairs of bfloat16, and the second ones.
inline Lanes firsts(const Pairs &pairs) { return (Lanes)(pairs << 16); }
inline Lanes seconds(const Pairs &pairs) { return (Lanes)(pairs & 0xffff0000u); }

// Sums of products of a row's numbers and a weight's, STEP of them at a time.
template <typename Row, typename Number>
struct Dot {
  static constexpr int64_t STEP = LANES;
  typedef Lanes Many;
  template <typename Given>
  static Lanes load(const Given *at) {
    return lanes(at);
  }
  static Lanes plus(const Lanes &sum, const Lanes &one, const Lanes &other) {
    return sum + one * other;
  }
};

template <>
struct Dot<BFloat16, BFloat16> {
  static constexpr int64_t STEP = 2 * LANES;
  typedef Pairs Many;
  static Pairs load(const BFloat16 *at) { return ::load<Pairs>(at); }
  static Lanes plus(const Lanes &sum, const Pairs &one, const Pairs &other) {
#ifdef __AVX512BF16__
    return (Lanes)_mm512_dpbf16_ps((__m512)sum, (__m512bh)one, (__m512bh)other);
#else
    return sum + firsts(one) * firsts(other) + seconds(one) * seconds(other);
#endif
  }
};

// The sum of a vector's two halves. Shuffles keep it in registers; a detour over memory would take
// all sums of a tile with it.
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SHUFFLES
#endif
#endif
#ifdef SHUFFLES
inline Eight folded(Lanes x) {
  return __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7) +
         __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
}
inline Four folded(Eight x) {
  return __builtin_shufflevector(x, x, 0, 1, 2, 3) + __builtin_shufflevector(x, x, 4, 5, 6, 7);
}
#else
template <typename Less, typename Whole>
inline Less halves(Whole whole) {
  Less low, high;
  std::memcpy(&low, &whole, sizeof low);
  std::memcpy(&high, reinterpret_cast<const char *>(&whole) + sizeof low, sizeof high);
  return low + high;
}
inline Eight folded(Lanes x) { return halves<Eight>(x); }
inline Four folded(Eight x) { return halves<Four>(x); }
#endif

inline float total(Lanes lanes) {
  const Four four = folded(folded(lanes));
  return (four[0] + four[2]) + (four[1] + four[3]);
}

}  // namespace

#endif
