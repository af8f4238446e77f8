// Which matrix a kernel multiplies by: its own, or of a mixture that of the expert that the grid's y names. A job is one
// row and one of the experts that it has chosen; -1 marks one that is not kept, or of a row that is not in use. Needs EXPERTS, PARTS, chosen.
#if EXPERTS
const int job = blockIdx.y / PARTS, expert = chosen[job];
if (expert < 0) return;
#else
const int job = 0, expert = 0;
#endif
