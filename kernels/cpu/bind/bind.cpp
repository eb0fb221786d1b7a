// The Python face of the C++ kernels: addresses and sizes in, nothing out but numbers.
//
// Tensors come as addresses (tensor.data_ptr()), so nothing here knows torch. Shapes, dtypes and strides were checked
// in Python (kernels/cpu); the interpreter lock is released around every computation.
#include "bind/bind.h"

NB_MODULE(_cpu, m) {
  headrace::bind_machine(m);
  headrace::bind_structs(m);
  headrace::bind_ops(m);
  headrace::bind_streams(m);
  headrace::bind_mailbox(m);
  headrace::bind_replay(m);
}
