// Sentences that refuse arguments, the same for every operation: what was met and what is allowed. dispatch.h puts the
// operation's name in front.
#ifndef GRAFT_REFUSAL_H_
#define GRAFT_REFUSAL_H_

#include <string.h>

#include <string>

#include "abi.h"

namespace graft {

inline std::string refuse(const std::string& what, const std::string& got, const std::string& allowed) {
  return what + " got " + got + ", allowed " + allowed;
}

inline std::string shape_text(const int64_t* shape, int32_t rank) {
  std::string text = "[";
  for (int32_t i = 0; i < rank; ++i) text += (i ? " " : "") + std::to_string(shape[i]);
  return text + "]";
}

inline std::string shape_text(const graft_tensor& x) { return shape_text(x.shape, x.rank); }

// The place of a word among those that an attribute may be; an empty string, or the sentence that refuses it.
template <size_t N>
std::string find_word(const char* attribute, const char* word, const char* const (&words)[N], int* index) {
  std::string allowed;
  for (size_t i = 0; i < N; ++i) {
    if (word != nullptr && strcmp(word, words[i]) == 0) {
      *index = static_cast<int>(i);
      return "";
    }
    allowed += (i ? ", " : "") + std::string(words[i]);
  }
  return refuse(attribute, word == nullptr ? "nothing" : word, allowed);
}

inline std::string check_no_key(int32_t no_key) {
  if (no_key == GRAFT_NO_KEY_ZERO || no_key == GRAFT_NO_KEY_MEAN) return "";
  return refuse("no_key", std::to_string(no_key), "0 (zero) or 1 (mean)");
}

}  // namespace graft

#endif  // GRAFT_REFUSAL_H_
