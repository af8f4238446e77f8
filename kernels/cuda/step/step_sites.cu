// Names that the bodies of whole steps share: what of a layer's arrays lies where in the table of addresses.
#define POINTER(type, layer, entry) reinterpret_cast<const type*>(address[(layer) * ENTRIES + (entry)])
#define LAST(type, entry) reinterpret_cast<const type*>(address[LAYERS * ENTRIES + (entry)])

// The row that a multiplication takes: its width, and the weights of its norm, where there is one.
auto width_at = [&](int site) { return site == 1 ? MIXED : site == 3 ? INNER : HIDDEN; };
auto padded_at = [&](int site) { return site == 1 ? MIXED_PAD : site == 3 ? INNER_PAD : HIDDEN_PAD; };
auto weight_at = [&](int layer, int site) {
  return layer == LAYERS ? LAST(float, 1) : site % 2 ? nullptr : POINTER(float, layer, site / 2);
};
