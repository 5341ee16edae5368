// Which instruction sets this processor and its operating system offer.
#ifndef GRAFT_CPU_H_
#define GRAFT_CPU_H_

#include <string>

namespace graft {

// In rising order: on its processors, every level includes those before it.
enum class Isa { scalar, avx2, avx512, avx512vnni, avx512bf16, neon };

Isa detected_isa();
const char* isa_name(Isa isa);
bool parse_isa(const char* name, Isa* isa);  // false: no such name
std::string isa_names();                     // for messages

}  // namespace graft

#endif  // GRAFT_CPU_H_
