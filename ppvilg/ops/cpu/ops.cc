// The kernels as paddle's custom operators. All tensors are float32 on the CPU unless said otherwise; ppvilg/ops sees to it.
#include "paddle/extension.h"

#include "attention.h"
#include "optimizer.h"
#include "rows.h"

using paddle::Grad;
using paddle::Tensor;

namespace {

Tensor like(const Tensor& x) { return paddle::empty(x.shape(), x.dtype(), x.place()); }

Tensor floats(const std::vector<int64_t>& shape, const Tensor& beside) {
  return paddle::empty(shape, paddle::DataType::FLOAT32, beside.place());
}

int64_t width_of(const Tensor& x) { return x.shape().back(); }

int64_t rows_of(const Tensor& x) { return width_of(x) ? x.numel() / width_of(x) : 0; }

}  // namespace

// x [..., width] + bias [width], in place.
std::vector<Tensor> AddBias(Tensor& x, const Tensor& bias) {
  ppvilg::add_bias(x.data<float>(), bias.data<float>(), rows_of(x), width_of(x));
  return {};
}

std::vector<Tensor> AddBiasGrad(Tensor& dout) {
  Tensor dbias = floats({width_of(dout)}, dout);
  ppvilg::column_sums(dout.data<float>(), dbias.data<float>(), rows_of(dout), width_of(dout));
  return {dbias};
}

PD_BUILD_OP(ppvilg_add_bias)
    .Inputs({"X", "Bias"})
    .Outputs({"Out"})
    .SetInplaceMap({{"X", "Out"}})
    .SetKernelFn(PD_KERNEL(AddBias));
PD_BUILD_GRAD_OP(ppvilg_add_bias)
    .Inputs({Grad("Out")})
    .Outputs({Grad("X"), Grad("Bias")})
    .SetInplaceMap({{Grad("Out"), Grad("X")}})
    .SetKernelFn(PD_KERNEL(AddBiasGrad));

// x [batch, channels, ...] + bias [channels], in place.
std::vector<Tensor> AddChannelBias(Tensor& x, const Tensor& bias) {
  const int64_t channels = bias.numel(), planes = x.shape()[0] * channels;
  ppvilg::add_channel_bias(x.data<float>(), bias.data<float>(), planes, channels, x.numel() / planes);
  return {};
}

std::vector<Tensor> AddChannelBiasGrad(Tensor& dout) {
  const int64_t channels = dout.shape()[1], planes = dout.shape()[0] * channels;
  Tensor dbias = floats({channels}, dout);
  ppvilg::channel_sums(dout.data<float>(), dbias.data<float>(), planes, channels, dout.numel() / planes);
  return {dbias};
}

PD_BUILD_OP(ppvilg_add_channel_bias)
    .Inputs({"X", "Bias"})
    .Outputs({"Out"})
    .SetInplaceMap({{"X", "Out"}})
    .SetKernelFn(PD_KERNEL(AddChannelBias));
PD_BUILD_GRAD_OP(ppvilg_add_channel_bias)
    .Inputs({Grad("Out")})
    .Outputs({Grad("X"), Grad("Bias")})
    .SetInplaceMap({{Grad("Out"), Grad("X")}})
    .SetKernelFn(PD_KERNEL(AddChannelBiasGrad));

// x [..., width] -> the normalised x, the means and the rates of its rows.
std::vector<Tensor> LayerNorm(const Tensor& x, const Tensor& weight, const Tensor& bias, float epsilon) {
  Tensor y = like(x), means = floats({rows_of(x)}, x), rates = floats({rows_of(x)}, x);
  ppvilg::layer_norm(x.data<float>(), weight.data<float>(), bias.data<float>(), epsilon, y.data<float>(),
                     means.data<float>(), rates.data<float>(), rows_of(x), width_of(x));
  return {y, means, rates};
}

std::vector<Tensor> LayerNormGrad(const Tensor& x, const Tensor& weight, const Tensor& means, const Tensor& rates,
                                  const Tensor& dy) {
  const int64_t width = width_of(x);
  Tensor dx = like(x), dweight = floats({width}, x), dbias = floats({width}, x);
  std::vector<float> sums(2 * width);
  ppvilg::layer_norm_grad(x.data<float>(), weight.data<float>(), means.data<float>(), rates.data<float>(),
                          dy.data<float>(), dx.data<float>(), sums.data(), rows_of(x), width);
  std::copy(sums.begin(), sums.begin() + width, dweight.data<float>());
  std::copy(sums.begin() + width, sums.end(), dbias.data<float>());
  return {dx, dweight, dbias};
}

PD_BUILD_OP(ppvilg_layer_norm)
    .Inputs({"X", "Weight", "Bias"})
    .Attrs({"epsilon: float"})
    .Outputs({"Y", "Means", "Rates"})
    .SetKernelFn(PD_KERNEL(LayerNorm));
PD_BUILD_GRAD_OP(ppvilg_layer_norm)
    .Inputs({"X", "Weight", "Means", "Rates", Grad("Y")})
    .Outputs({Grad("X"), Grad("Weight"), Grad("Bias")})
    .SetKernelFn(PD_KERNEL(LayerNormGrad));

std::vector<Tensor> Gelu(const Tensor& x) {
  Tensor y = like(x);
  ppvilg::gelu(x.data<float>(), y.data<float>(), x.numel());
  return {y};
}

std::vector<Tensor> GeluGrad(const Tensor& x, const Tensor& dy) {
  Tensor dx = like(x);
  ppvilg::gelu_grad(x.data<float>(), dy.data<float>(), dx.data<float>(), x.numel());
  return {dx};
}

PD_BUILD_OP(ppvilg_gelu).Inputs({"X"}).Outputs({"Y"}).SetKernelFn(PD_KERNEL(Gelu));
PD_BUILD_GRAD_OP(ppvilg_gelu).Inputs({"X", Grad("Y")}).Outputs({Grad("X")}).SetKernelFn(PD_KERNEL(GeluGrad));

// logits [..., V], labels int64 [...] -> losses [...] and the logarithms of the rows' sums.
std::vector<Tensor> CrossEntropy(const Tensor& logits, const Tensor& labels) {
  const int64_t *first = labels.data<int64_t>(), count = labels.numel(), width = width_of(logits);
  PD_CHECK(std::all_of(first, first + count, [=](int64_t label) { return label >= 0 && label < width; }),
           "a label is outside of the ", width, " classes");
  Tensor losses = floats(labels.shape(), logits), log_sums = floats(labels.shape(), logits);
  ppvilg::cross_entropy(logits.data<float>(), first, losses.data<float>(), log_sums.data<float>(), count, width);
  return {losses, log_sums};
}

std::vector<Tensor> CrossEntropyGrad(const Tensor& logits, const Tensor& labels, const Tensor& log_sums,
                                     const Tensor& dlosses) {
  Tensor dlogits = like(logits);
  ppvilg::cross_entropy_grad(logits.data<float>(), labels.data<int64_t>(), log_sums.data<float>(), dlosses.data<float>(),
                             dlogits.data<float>(), labels.numel(), width_of(logits));
  return {dlogits};
}

PD_BUILD_OP(ppvilg_cross_entropy)
    .Inputs({"Logits", "Labels"})
    .Outputs({"Losses", "LogSums"})
    .SetKernelFn(PD_KERNEL(CrossEntropy));
PD_BUILD_GRAD_OP(ppvilg_cross_entropy)
    .Inputs({"Logits", "Labels", "LogSums", Grad("Losses")})
    .Outputs({Grad("Logits")})
    .SetKernelFn(PD_KERNEL(CrossEntropyGrad));

namespace {

ppvilg::Shape shape_of(const Tensor& q) { return {q.shape()[0], q.shape()[1], q.shape()[2], q.shape()[3]}; }

ppvilg::Table table_of(const Tensor& tiles, const Tensor& ranges, const Tensor& slots, const Tensor& mask) {
  return {reinterpret_cast<const ppvilg::Tile*>(tiles.data<int64_t>()), ranges.data<int64_t>(), ranges.numel() - 1,
          slots.data<int64_t>(), mask.data<uint8_t>()};
}

}  // namespace

// q, k, v [B, L, heads, width], key_mask bool [B, L] and the table of ppvilg/ops/attention.py: tiles int64 [tiles, 5], ranges
// int64 [masks + 1], slots int64, mask uint8 -> [B, L, heads, width] and the logarithms of the queries' sums [B, heads, L].
std::vector<Tensor> Attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& key_mask, const Tensor& tiles,
                              const Tensor& ranges, const Tensor& slots, const Tensor& mask) {
  const ppvilg::Shape shape = shape_of(q);
  Tensor out = like(q), log_sums = floats({shape.batch, shape.heads, shape.length}, q);
  ppvilg::attention(q.data<float>(), k.data<float>(), v.data<float>(), table_of(tiles, ranges, slots, mask),
                    key_mask.data<bool>(), out.data<float>(), log_sums.data<float>(), shape);
  return {out, log_sums};
}

std::vector<Tensor> AttentionGrad(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& key_mask,
                                  const Tensor& tiles, const Tensor& ranges, const Tensor& slots, const Tensor& mask,
                                  const Tensor& out, const Tensor& log_sums, const Tensor& dout) {
  Tensor dq = like(q), dk = like(q), dv = like(q);
  std::memset(dk.data<float>(), 0, q.numel() * sizeof(float));
  std::memset(dv.data<float>(), 0, q.numel() * sizeof(float));
  ppvilg::attention_grad(q.data<float>(), k.data<float>(), v.data<float>(), table_of(tiles, ranges, slots, mask),
                         key_mask.data<bool>(), out.data<float>(), const_cast<float*>(log_sums.data<float>()),
                         dout.data<float>(), dq.data<float>(), dk.data<float>(), dv.data<float>(), shape_of(q));
  return {dq, dk, dv};
}

PD_BUILD_OP(ppvilg_attention)
    .Inputs({"Q", "K", "V", "KeyMask", "Tiles", "Ranges", "Slots", "Mask"})
    .Outputs({"Out", "LogSums"})
    .SetKernelFn(PD_KERNEL(Attention));
PD_BUILD_GRAD_OP(ppvilg_attention)
    .Inputs({"Q", "K", "V", "KeyMask", "Tiles", "Ranges", "Slots", "Mask", "Out", "LogSums", Grad("Out")})
    .Outputs({Grad("Q"), Grad("K"), Grad("V")})
    .SetKernelFn(PD_KERNEL(AttentionGrad));

// The operators below write to tensors without declaring it, which paddle forbids for weights. They are only run where autograd
// is off. What they return tells nothing new where nothing is said of it.

namespace {

float* writable(const Tensor& x) { return const_cast<float*>(x.data<float>()); }

Tensor scalar(float value, const Tensor& beside) {
  return paddle::full({}, value, paddle::DataType::FLOAT32, beside.place());
}

}  // namespace

// One step for all weights: rates [1], and beta1^t and beta2^t [1], which become those of the next step; a decay for each.
std::vector<Tensor> AdamW(const std::vector<Tensor>& weights, const std::vector<Tensor>& gradients,
                          const std::vector<Tensor>& firsts, const std::vector<Tensor>& seconds,
                          const std::vector<Tensor>& beta1_powers, const std::vector<Tensor>& beta2_powers,
                          const std::vector<Tensor>& rates, float beta1, float beta2, float epsilon,
                          const std::vector<float>& decays) {
  std::vector<ppvilg::Update> updates;
  for (size_t w = 0; w < weights.size(); w++) {
    float *power1 = writable(beta1_powers[w]), *power2 = writable(beta2_powers[w]);
    const float rate = rates[w].data<float>()[0], root = std::sqrt(1.f - *power2);
    for (int64_t i = 0; i < weights[w].numel(); i += ppvilg::kPiece)
      updates.push_back({writable(weights[w]) + i, writable(firsts[w]) + i, writable(seconds[w]) + i,
                         gradients[w].data<float>() + i, std::min(ppvilg::kPiece, weights[w].numel() - i),
                         rate * root / (1.f - *power1), epsilon * root, 1.f - rate * decays[w]});
    *power1 *= beta1;
    *power2 *= beta2;
  }
  ppvilg::adamw(updates, beta1, beta2);
  return {scalar(beta1, rates[0])};
}

PD_BUILD_OP(ppvilg_adamw)
    .Inputs({paddle::Vec("Weights"), paddle::Vec("Gradients"), paddle::Vec("Firsts"), paddle::Vec("Seconds"),
             paddle::Vec("Beta1Powers"), paddle::Vec("Beta2Powers"), paddle::Vec("Rates")})
    .Outputs({"Beta1"})
    .Attrs({"beta1: float", "beta2: float", "epsilon: float", "decays: std::vector<float>"})
    .SetKernelFn(PD_KERNEL(AdamW));

namespace {

std::vector<ppvilg::Piece> pieces_of(const std::vector<Tensor>& x, const std::vector<Tensor>* y = nullptr) {
  std::vector<ppvilg::Piece> pieces;
  for (size_t i = 0; i < x.size(); i++)
    ppvilg::cut(writable(x[i]), y ? (*y)[i].data<float>() : nullptr, x[i].numel(), &pieces);
  return pieces;
}

}  // namespace

// Each x += share * (its y - x) -> the share [].
std::vector<Tensor> Lerp(const std::vector<Tensor>& x, const std::vector<Tensor>& y, float share) {
  ppvilg::lerp(pieces_of(x, &y), share);
  return {scalar(share, x[0])};
}

PD_BUILD_OP(ppvilg_lerp)
    .Inputs({paddle::Vec("X"), paddle::Vec("Y")})
    .Outputs({"Share"})
    .Attrs({"share: float"})
    .SetKernelFn(PD_KERNEL(Lerp));

// -> the sum [] of all squares of all x.
std::vector<Tensor> SquaredSum(const std::vector<Tensor>& x) {
  return {scalar(ppvilg::squared_sum(pieces_of(x)), x[0])};
}

PD_BUILD_OP(ppvilg_squared_sum).Inputs({paddle::Vec("X")}).Outputs({"Sum"}).SetKernelFn(PD_KERNEL(SquaredSum));

// Scales all x so that the norm of all of them together is at most `largest` -> what it was [].
std::vector<Tensor> ClipNorm(const std::vector<Tensor>& x, float largest) {
  const std::vector<ppvilg::Piece> pieces = pieces_of(x);
  const float norm = std::sqrt(ppvilg::squared_sum(pieces));
  if (!(norm <= largest)) ppvilg::scale(pieces, largest / norm);
  return {scalar(norm, x[0])};
}

PD_BUILD_OP(ppvilg_clip_norm)
    .Inputs({paddle::Vec("X")})
    .Outputs({"Norm"})
    .Attrs({"largest: float"})
    .SetKernelFn(PD_KERNEL(ClipNorm));
