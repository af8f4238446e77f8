// How the bodies of whole steps begin: what the launch was told, and each block's own copy of it.
const bool chooses = told[STATE_SHOWS] != 0, shows_logits = told[STATE_SHOWS] != 1;
int position = told[0], token_turn = 0;
const int capacity = cache_shape[3], splits = capacity / SPAN;
GridBarrier grid_barrier(const_cast<unsigned*>(sync));
float *logits = const_cast<float*>(logits_out), *choices = const_cast<float*>(choices_out) + CHOICE_WORDS;
unsigned long long* address = reinterpret_cast<unsigned long long*>(shared_memory);
// A launch that goes on with its own tokens moves the state on.
int* state = reinterpret_cast<int*>(address + ADDRESSES);
int* chosen = state + STATE_SIZE;
for (int i = tid; i < ADDRESSES; i += THREADS) address[i] = (unsigned long long)table[i];
for (int i = tid; i < STATE_SIZE; i += THREADS) state[i] = told[i];
