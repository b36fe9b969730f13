// The inserted stream of some layers, one after the other, METHOD, 1: rows z [batch * tokens, D] in
// place, and v, their norm after the last.
// Single precision; norm by z's own rms; a gated FFN with SiLU. Weights are [outputs, inputs]. What
// is read of the base, and the weights that it meets, are bfloat16 where a form says so.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

namespace {

constexpr int64_t LANES = 16;
typedef float Lanes __attribute__((vector_size(LANES * sizeof(float))));
typedef uint16_t Half;
typedef uint32_t Pairs __attribute__((vector_size(LANES * sizeof(uint32_t))));
typedef float Eight __attribute__((vector_size(8 * sizeof(float))));
typedef float Four __attribute__((vector_size(4 * sizeof(float))));

enum Mask : int64_t { EVERYTHING, CAUSAL, ADDED, ALLOWED };

// Keys and values of the base in a paged cache, where every row is of a sequence: of each block and
// head keys [head_dim, size], and values [size, head_dim] behind them. Half: as bfloat16 in pairs,
// keys [size / LANES, head_dim / 2, LANES, 2] and values [head_dim / LANES, size / 2, LANES, 2].
struct Pages {
  int64_t size, half;  // slots of a block, a multiple of LANES
  int64_t of_block, of_head, of_sequence;  // strides in the caches, and in the table
  const int32_t *table;                    // [sequences, ...] blocks
  const int64_t *sequence, *seen;          // of a row; how many slots it sees
};

// What one insertion is, and one call of it.
struct Form {
  int64_t batch, tokens, layers, hidden;
  int64_t in_heads, in_out, in_units, in_down;  // widths of what is read of the base
  int64_t heads, kv_heads, head_dim, units;
  int64_t own_kv, slots, first_slot;  // the tokens' keys and values go to first_slot and on
  int64_t mask, mask_of_batch, mask_of_token, turn_of_batch;
  int64_t half;  // of Weights: heads_h, out_h, units_h, down_h; of Taps: what the base hands
  double eps, scale;
  const Pages *pages;  // null: `Taps` say where all keys and values lie
};

// Pointers of a layer; null where there is no such tensor.
struct Weights {
  const float *norm, *norm_bias, *heads_h, *heads_z, *heads_bias, *query_norm, *key_norm;
  const float *out_h, *out_z, *out_bias;
  const float *units_norm, *units_norm_bias, *units_h, *units_z, *units_bias;
  const float *down_h, *down_z, *down_bias;
};

// What the base hands a layer; keys and values are the insertion's own, or the base's.
struct Taps {
  const void *normed, *attended, *ffn_normed, *activated;
  float *key, *value;
  int64_t key_of[3], value_of[3];  // strides of batch, head and slot
  const float *cos, *sin;
  const void *mask;
};

// What a layer's four products take from the base.
struct Made {
  float *heads, *out, *units, *down;
};

template <typename Many = Lanes>
inline Many load(const void *at) {
  Many lanes;
  std::memcpy(&lanes, at, sizeof lanes);
  return lanes;
}

// The numbers that stand first in pairs of bfloat16, and those that stand second.
inline Lanes firsts(const Pairs &pairs) { return (Lanes)(pairs << 16); }
inline Lanes seconds(const Pairs &pairs) { return (Lanes)(pairs & 0xffff0000u); }

// What a register holds of numbers that lie one after the other.
template <typename Number>
using Wide = std::conditional_t<std::is_same_v<Number, Half>, Pairs, Lanes>;

inline Lanes plus_products(const Lanes &sum, const Lanes &one, const Lanes &other) {
  return sum + one * other;
}
inline Lanes plus_products(const Lanes &sum, const Pairs &one, const Pairs &other) {
  return sum + firsts(one) * firsts(other) + seconds(one) * seconds(other);
}

inline float whole(float one) { return one; }
inline float whole(Half one) {
  const uint32_t bits = uint32_t(one) << 16;
  float same;
  std::memcpy(&same, &bits, sizeof same);
  return same;
}

// Half as wide, until one is left. Where it can be said, without a detour over memory, on which all
// sums of a tile would go with it.
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

// out[x][w] (+)= x . w, of X rows and W weights, while F of the next weights are fetched: a row is
// too short for the processor to see by itself where reading goes on.
template <int W, int X, int F, typename Number>
void tile(const Number *x, const Number *w, const Number *next, int64_t width, float *out,
          int64_t stride, bool add) {
  constexpr int64_t STEP = sizeof(Wide<Number>) / sizeof(Number);
  Lanes sums[W][X] = {};
  int64_t i = 0;
  for (; i + STEP <= width; i += STEP) {
    Wide<Number> rows[X];
    for (int r = 0; r < X; ++r) rows[r] = load<Wide<Number>>(x + r * width + i);
    for (int f = 0; f < F; ++f) __builtin_prefetch(next + f * width + i);
    for (int o = 0; o < W; ++o) {
      const auto weight = load<Wide<Number>>(w + o * width + i);
      for (int r = 0; r < X; ++r) sums[o][r] = plus_products(sums[o][r], weight, rows[r]);
    }
  }
  float found[X][W];
#pragma GCC unroll 8
  for (int r = 0; r < X; ++r)
#pragma GCC unroll 8
    for (int o = 0; o < W; ++o) found[r][o] = total(sums[o][r]);
  for (; i < width; ++i)
    for (int r = 0; r < X; ++r)
      for (int o = 0; o < W; ++o) found[r][o] += whole(w[o * width + i]) * whole(x[r * width + i]);
  for (int r = 0; r < X; ++r)
    for (int o = 0; o < W; ++o)
      out[r * stride + o] = add ? out[r * stride + o] + found[r][o] : found[r][o];
}

// `tile` of so many rows, X at most.
template <int W, int X, int F, typename... Given>
void tile_of(int64_t rows, Given... given) {
  if (rows == X)
    tile<W, X, F>(given...);
  else if constexpr (X > 1)
    tile_of<W, X - 1, F>(rows, given...);
}

// All rows, up to five at a time and about as many each time. Many share what is to be fetched; few
// fetch all of it, unless there is too little to do meanwhile.
template <int W, typename Number>
void weights(const Number *x, int64_t rows, const Number *w, int64_t width, float *out,
             int64_t stride, bool add) {
  const Number *next = w + W * width, *last = next + (W - 1) * width;
  const int64_t times = (rows + 4) / 5;
  const bool all = rows == 1 || (rows >= 5 && times < 3);
  for (int64_t time = 0, r = 0; time < times; ++time) {
    const int64_t now = (rows - r + times - time - 1) / (times - time);
    const Number *here = x + r * width, *ahead = std::min(next + time * width, last);
    float *to = out + r * stride;
    if (all)
      tile_of<W, 5, W>(now, here, w, next, width, to, stride, add);
    else
      tile_of<W, 5, 1>(now, here, w, ahead, width, to, stride, add);
    r += now;
  }
}

// out [rows, stride] (+)= x W^T for the outputs from `from` to `to`.
template <typename Number>
void product(const Number *x, int64_t rows, const Number *w, int64_t width, int64_t from,
             int64_t to, float *out, int64_t stride, bool add) {
  int64_t o = from;
  for (; o + 4 <= to; o += 4)
    weights<4>(x, rows, w + o * width, width, out + o, stride, add);
  for (; o < to; ++o) weights<1>(x, rows, w + o * width, width, out + o, stride, add);
}

void plus(float *row, const float *other, int64_t width) {
  if (other)
    for (int64_t i = 0; i < width; ++i) row[i] += other[i];
}

// x / rms(x) * g (+ b)
void normed(const float *x, int64_t width, double eps, const float *g, const float *b, float *out) {
  double squares = 0;
  for (int64_t i = 0; i < width; ++i) squares += double(x[i]) * x[i];
  const float scale = float(1 / std::sqrt(squares / width + eps));
  for (int64_t i = 0; i < width; ++i) out[i] = x[i] * scale * g[i];
  plus(out, b, width);
}

// x cos + (-x2, x1) sin, of the halves x1 and x2.
void turn(float *x, const float *cos, const float *sin, int64_t width) {
  const int64_t half = width / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float one = x[i], two = x[half + i];
    x[i] = one * cos[i] - two * sin[i];
    x[half + i] = two * cos[half + i] + one * sin[half + i];
  }
}

// One call's buffers, kept by the thread for the next.
float *room(std::vector<float> &kept, int64_t size) {
  if (int64_t(kept.size()) < size) kept.resize(size);
  return kept.data();
}

struct Stream {
  const Form &form;
  float *z;

  int64_t rows() const { return form.batch * form.tokens; }
  int64_t kept_heads() const { return form.own_kv ? form.kv_heads : 0; }
  int64_t head_outputs() const { return (form.heads + 2 * kept_heads()) * form.head_dim; }

  // u of the row, then the layer's queries, keys and values: turned, keys and values in the cache.
  void look(const Weights &w, const Taps &taps, const Made &made, int64_t row) const {
    const int64_t c = form.head_dim, b = row / form.tokens, t = row % form.tokens;
    float *inputs = made.heads + row * head_outputs();
    enter(z + row * form.hidden, w.norm, w.norm_bias, w.heads_z, w.heads_bias, head_outputs(),
          inputs);
    const int64_t at = b * form.turn_of_batch + t * c;
    for (int64_t head = 0; head < form.heads + kept_heads(); ++head) {
      float *one = inputs + head * c;
      if (const float *g = head < form.heads ? w.query_norm : w.key_norm)
        normed(one, c, form.eps, g, nullptr, one);
      if (taps.cos) turn(one, taps.cos + at, taps.sin + at, c);
    }
    const float *keys = inputs + form.heads * c, *values = keys + kept_heads() * c;
    for (int64_t head = 0; head < kept_heads(); ++head) {
      std::memcpy(slot(taps.key, taps.key_of, b, head, form.first_slot + t), keys + head * c,
                  c * sizeof(float));
      std::memcpy(slot(taps.value, taps.value_of, b, head, form.first_slot + t), values + head * c,
                  c * sizeof(float));
    }
  }

  // The rest of the layer: attention, out, FFN.
  void land(const Weights &w, const Taps &taps, const Made &made, int64_t row) const {
    static thread_local std::vector<float> kept;
    const int64_t attended = form.heads * form.head_dim;
    float *mine = room(kept, std::max(attended, form.units) + form.slots + LANES);
    float *here = z + row * form.hidden;
    for (int64_t head = 0; head < form.heads; ++head)
      attend(taps, made.heads + row * head_outputs() + head * form.head_dim, row, head,
             mine + head * form.head_dim, mine + std::max(attended, form.units));
    plus(here, made.out + row * form.hidden, form.hidden);
    if (form.heads) product(mine, 1, w.out_z, attended, 0, form.hidden, here, form.hidden, true);
    plus(here, w.out_bias, form.hidden);
    if (form.units) {
      float *inputs = made.units + row * 2 * form.units;
      enter(here, w.units_norm, w.units_norm_bias, w.units_z, w.units_bias, 2 * form.units, inputs);
      const float *up = inputs + form.units;
      for (int64_t i = 0; i < form.units; ++i)
        mine[i] = inputs[i] / (1 + std::exp(-inputs[i])) * up[i];
    }
    plus(here, made.down + row * form.hidden, form.hidden);
    if (form.units) product(mine, 1, w.down_z, form.units, 0, form.hidden, here, form.hidden, true);
    plus(here, w.down_bias, form.hidden);
  }

 private:
  static float *slot(float *first, const int64_t *of, int64_t batch, int64_t head, int64_t at) {
    return first + batch * of[0] + head * of[1] + at * of[2];
  }

  // out += u W^z (+ b), u = norm(x)
  void enter(const float *x, const float *g, const float *g_bias, const float *w, const float *bias,
             int64_t outputs, float *out) const {
    static thread_local std::vector<float> kept;
    float *u = room(kept, form.hidden);
    normed(x, form.hidden, form.eps, g, g_bias, u);
    product(u, 1, w, form.hidden, 0, outputs, out, outputs, true);
    plus(out, bias, outputs);
  }

  // What a token does not see takes no part, whatever its values are.
  bool sees(const Taps &taps, int64_t b, int64_t t, int64_t at, float &score) const {
    const int64_t place = b * form.mask_of_batch + t * form.mask_of_token + at;
    switch (form.mask) {
      case CAUSAL: return at <= form.first_slot + t;
      case ADDED: score += static_cast<const float *>(taps.mask)[place]; return true;
      case ALLOWED: return static_cast<const uint8_t *>(taps.mask)[place];
      default: return true;
    }
  }

  // A row's block that begins with slot `at`: a head's keys, and its values behind them.
  const char *page(const Taps &taps, int64_t row, int64_t kv, int64_t at) const {
    const Pages &pages = *form.pages;
    const int64_t block = pages.table[pages.sequence[row] * pages.of_sequence + at / pages.size];
    return reinterpret_cast<const char *>(taps.key) +
           (block * pages.of_block + kv * pages.of_head) * (pages.half ? 2 : 4);
  }

  // scores[at...] = query . key, of N lanes of slots side by side: keys lie by their numbers.
  template <typename Number, int N>
  void score(const char *keys, const float *query, int64_t at, float *scores) const {
    const int64_t size = form.pages->size, c = form.head_dim;
    Lanes sums[N] = {};
    for (int64_t i = 0; i < c; i += 2)
      for (int n = 0; n < N; ++n)
        if constexpr (std::is_same_v<Number, Half>) {
          const Pairs *pairs = reinterpret_cast<const Pairs *>(keys) + (at / LANES + n) * (c / 2);
          const Pairs both = load<Pairs>(pairs + i / 2);
          sums[n] += query[i] * firsts(both) + query[i + 1] * seconds(both);
        } else {
          const float *here = reinterpret_cast<const float *>(keys) + at + n * LANES + i * size;
          sums[n] += query[i] * load(here) + query[i + 1] * load(here + size);
        }
    std::memcpy(scores + at, sums, sizeof sums);
  }

  // out[i...] += weight * value, of N lanes of a value's numbers and the first slots of a block.
  template <typename Number, int N>
  void mix(const char *values, const float *weights, int64_t slots, int64_t i, float *out) const {
    const int64_t size = form.pages->size, c = form.head_dim;
    Lanes sums[N];
    std::memcpy(sums, out + i, sizeof sums);
    for (int64_t at = 0; at < slots; ++at)
      for (int n = 0; n < N; ++n)
        if constexpr (std::is_same_v<Number, Half>) {
          const Pairs *pairs = reinterpret_cast<const Pairs *>(values);
          const Pairs both = load<Pairs>(pairs + (i / LANES + n) * (size / 2) + at / 2);
          sums[n] += weights[at] * (at % 2 ? seconds(both) : firsts(both));
        } else {
          const float *value = reinterpret_cast<const float *>(values) + at * c;
          sums[n] += weights[at] * load(value + i + n * LANES);
        }
    std::memcpy(out + i, sums, sizeof sums);
  }

  // Whole lanes of slots at a time: what lies behind the last that is seen is nobody's.
  template <typename Number>
  void score_pages(const Taps &taps, const float *query, int64_t row, int64_t kv, int64_t slots,
                   float *scores) const {
    const int64_t size = form.pages->size;
    for (int64_t first = 0; first < slots; first += size, scores += size) {
      const char *keys = page(taps, row, kv, first);
      const int64_t seen = std::min(slots - first, size);
      int64_t at = 0;
      for (; at + 3 * LANES < seen; at += 4 * LANES) score<Number, 4>(keys, query, at, scores);
      if (at + 2 * LANES < seen)
        score<Number, 3>(keys, query, at, scores);
      else if (at + LANES < seen)
        score<Number, 2>(keys, query, at, scores);
      else if (at < seen)
        score<Number, 1>(keys, query, at, scores);
    }
  }

  template <typename Number>
  void mix_pages(const Taps &taps, const float *weights, int64_t row, int64_t kv, int64_t slots,
                 float *out) const {
    const int64_t size = form.pages->size, c = form.head_dim;
    for (int64_t first = 0; first < slots; first += size, weights += size) {
      const char *values = page(taps, row, kv, first) + size * c * sizeof(Number);
      const int64_t seen = std::min(slots - first, size);
      int64_t i = 0;
      for (; i + 8 * LANES <= c; i += 8 * LANES) mix<Number, 8>(values, weights, seen, i, out);
      for (; i + 4 * LANES <= c; i += 4 * LANES) mix<Number, 4>(values, weights, seen, i, out);
      for (; i < c; i += LANES) mix<Number, 1>(values, weights, seen, i, out);
    }
  }

  void score_slots(const Taps &taps, const float *query, int64_t b, int64_t kv,
                   float *scores) const {
    const int64_t c = form.head_dim;
    if (taps.key_of[2] == c)
      product(query, 1, slot(taps.key, taps.key_of, b, kv, 0), c, 0, form.slots, scores, 1, false);
    else
      for (int64_t at = 0; at < form.slots; ++at)
        product(query, 1, slot(taps.key, taps.key_of, b, kv, at), c, 0, 1, scores + at, 1, false);
  }

  void mix_slots(const Taps &taps, const float *weights, int64_t b, int64_t kv, float *out) const {
    for (int64_t at = 0; at < form.slots; ++at) {
      if (weights[at] == 0) continue;
      const float *value = slot(taps.value, taps.value_of, b, kv, at);
      for (int64_t i = 0; i < form.head_dim; ++i) out[i] += weights[at] * value[i];
    }
  }

  void attend(const Taps &taps, const float *query, int64_t row, int64_t head, float *out,
              float *weights) const {
    const int64_t c = form.head_dim, b = row / form.tokens, t = row % form.tokens;
    const int64_t kv = head / (form.heads / form.kv_heads);
    const int64_t slots = form.pages ? form.pages->seen[row] : form.slots;
    const bool half = form.pages && form.pages->half;
    if (half)
      score_pages<Half>(taps, query, row, kv, slots, weights);
    else if (form.pages)
      score_pages<float>(taps, query, row, kv, slots, weights);
    else
      score_slots(taps, query, b, kv, weights);
    float largest = -INFINITY;
    for (int64_t at = 0; at < slots; ++at) {
      float score = weights[at] * float(form.scale);
      weights[at] = sees(taps, b, t, at, score) ? score : -INFINITY;
      largest = std::max(largest, weights[at]);
    }
    std::fill(out, out + c, 0.0f);
    float sum = 0;
    for (int64_t at = 0; at < slots; ++at) {
      const bool seen = weights[at] != -INFINITY;
      sum += weights[at] = seen ? std::exp(weights[at] - largest) : 0;
    }
    if (half)
      mix_pages<Half>(taps, weights, row, kv, slots, out);
    else if (form.pages)
      mix_pages<float>(taps, weights, row, kv, slots, out);
    else
      mix_slots(taps, weights, b, kv, out);
    if (sum != 0)
      for (int64_t i = 0; i < c; ++i) out[i] /= sum;
  }
};

// Some outputs of a product with the base: as much as a thread takes at a time.
struct Piece {
  int64_t layer;
  const void *x, *w;
  int64_t first, rows, width, from, to;  // rows from the first on, outputs `from` up to `to`
  float *out;
  int64_t stride;
  bool half;

  void run() const {
    if (half)
      of<Half>();
    else
      of<float>();
  }

 private:
  template <typename Number>
  void of() const {
    const Number *here = static_cast<const Number *>(x) + first * width;
    product(here, rows, static_cast<const Number *>(w), width, from, to, out + first * stride,
            stride, false);
  }
};

// As many rows of the base as stay near the processor from one output to the next.
constexpr int64_t PIECE = 32, ROWS = 64;

void cut(std::vector<Piece> &pieces, int64_t layer, const void *x, int64_t rows, const void *w,
         int64_t width, int64_t outputs, float *out, bool half) {
  for (int64_t row = 0; row < rows; row += ROWS)
    for (int64_t from = 0; from < outputs; from += PIECE)
      pieces.push_back({layer, x, w, row, std::min(ROWS, rows - row), width, from,
                        std::min(outputs, from + PIECE), out, outputs, half});
}

// Rows go side by side: all pieces, then layer by layer.
void many_rows(const Stream &stream, const Weights *weights, const Taps *taps,
               const std::vector<Made> &layers, const std::vector<Piece> &pieces) {
  const int64_t rows = stream.rows(), count = pieces.size();
  const Piece *all = pieces.data();
#pragma omp parallel
  {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < count; ++i) all[i].run();
    for (size_t l = 0; l < layers.size(); ++l) {
      if (stream.form.heads) {
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; ++row) stream.look(weights[l], taps[l], layers[l], row);
      }
#pragma omp for schedule(static)
      for (int64_t row = 0; row < rows; ++row) stream.land(weights[l], taps[l], layers[l], row);
    }
  }
}

// A row goes through its layers one by one: by one thread, as soon as the pieces of a layer are
// done, while the others are at those of later ones.
void one_row(const Stream &stream, const Weights *weights, const Taps *taps,
             const std::vector<Made> &layers, const std::vector<Piece> &pieces) {
  const int64_t count = pieces.size();
  std::vector<std::atomic<int64_t>> left(layers.size());
  for (const Piece &piece : pieces) ++left[piece.layer];
  std::atomic<int64_t> next{0};
  const auto one_more = [&] {
    const int64_t i = next.fetch_add(1, std::memory_order_relaxed);
    if (i >= count) return false;
    pieces[i].run();
    left[pieces[i].layer].fetch_sub(1, std::memory_order_release);
    return true;
  };
#pragma omp parallel
  {
#pragma omp master
    for (size_t l = 0; l < layers.size(); ++l) {
      while (left[l].load(std::memory_order_acquire)) one_more();
      if (stream.form.heads) stream.look(weights[l], taps[l], layers[l], 0);
      stream.land(weights[l], taps[l], layers[l], 0);
    }
    while (one_more()) {}
  }
}

}  // namespace

// After the last layer of all, `weights` has one entry more, of the last norm; before, v is null.
extern "C" void otter_stream(const Form *form, const Weights *weights, const Taps *taps, float *z,
                             float *v) {
  static thread_local std::vector<float> kept;
  static thread_local std::vector<Piece> pieces;
  const Stream stream{*form, z};
  const int64_t rows = stream.rows(), hidden = form->hidden, units = 2 * form->units;
  const int64_t heads = form->heads ? stream.head_outputs() : 0;
  const int64_t of_layer = rows * (heads + units + 2 * hidden);
  float *made = room(kept, form->layers * of_layer);
  std::vector<Made> layers(form->layers);
  pieces.clear();
  for (int64_t l = 0; l < form->layers; ++l) {
    float *first = made + l * of_layer;
    layers[l] = {first, first + rows * heads, first + rows * (heads + hidden),
                 first + rows * (heads + hidden + units)};
    const Weights &w = weights[l];
    const Made &to = layers[l];
    const auto add = [&](const void *x, const void *w, int64_t width, int64_t outs, float *out) {
      cut(pieces, l, x, rows, w, width, outs, out, form->half);
    };
    add(taps[l].normed, w.heads_h, form->in_heads, heads, to.heads);
    add(taps[l].attended, w.out_h, form->in_out, hidden, to.out);
    add(taps[l].ffn_normed, w.units_h, form->in_units, units, to.units);
    add(taps[l].activated, w.down_h, form->in_down, hidden, to.down);
  }
  if (rows == 1)
    one_row(stream, weights, taps, layers, pieces);
  else
    many_rows(stream, weights, taps, layers, pieces);
  if (!v) return;
  const Weights &last = weights[form->layers];
  for (int64_t row = 0; row < rows; ++row)
    normed(z + row * hidden, hidden, form->eps, last.norm, last.norm_bias, v + row * hidden);
}
