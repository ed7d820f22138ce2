#include "cpu/bf16_ops.h"
#include "util/util.h"
#include <stdlib.h>
static Tensor up(Tensor t,long rows,long cols){float*p=calloc(rows*cols,4);for(long r=0;r<rows;r++)bf16_to_floats(p+r*cols,bf16_row(t,r),cols);return (Tensor){(dev*)p,cols,F32,0};}
static void down(Tensor t,Tensor f,long rows,long cols){for(long r=0;r<rows;r++)bf16_from_floats(bf16_row(t,r),(float*)f.p+r*cols,cols);free(f.p);}
void bf16_attention_forward(const Attention *a){Attention b=*a;long C=a->heads*a->hs;b.qkv=up(a->qkv,a->B*a->T,3*C);b.out=up(a->out,a->B*a->Tq,C);backend_cpu()->attention_forward(&b);down(a->out,b.out,a->B*a->Tq,C);free(b.qkv.p);}
void bf16_attention_backward(const Attention *a){Attention b=*a;long C=a->heads*a->hs;b.qkv=up(a->qkv,a->B*a->T,3*C);b.out=up(a->out,a->B*a->Tq,C);b.dqkv=up(a->dqkv,a->B*a->T,3*C);b.dout=up(a->dout,a->B*a->Tq,C);backend_cpu()->attention_backward(&b);down(a->dqkv,b.dqkv,a->B*a->T,3*C);free(b.qkv.p);free(b.out.p);free(b.dout.p);}
