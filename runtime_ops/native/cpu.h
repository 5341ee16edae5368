// Which instruction sets this processor and its operating system offer.
#ifndef GRAFT_CPU_H_
#define GRAFT_CPU_H_

#include <string>

namespace graft {

// In rising order: a level may use what those before it use, where the processor has it.
enum class Isa { scalar, avx2, avxvnni, avx512, avx512vnni, avx512bf16, neon, neondotprod };

bool offers(Isa isa);
Isa detected_isa();          // the highest of them
std::string offered_isas();  // for messages
const char* isa_name(Isa isa);
bool parse_isa(const char* name, Isa* isa);  // false: no such name
std::string isa_names();                     // for messages

}  // namespace graft

#endif  // GRAFT_CPU_H_
