# Compiles one object of the toy, if its source or a header that it includes is newer.
dir := $(dir $(object))
cmd := $(dir).$(notdir $(object)).cmd
source := $(srctree)/$(object:.o=.c)

-include $(cmd)

$(object): $(source)
	@$(if $(findstring slow,$(object)),sleep 0.7)
	@echo "  CC      $@"
	@$(CC) -ffreestanding -fno-pie -Wall -Wunused -g0 -I$(srctree)/include -Iinclude/generated \
		$(if $(GCOV_PROFILE),$(CFLAGS_GCOV)) \
		-include include/generated/autoconf.h -MMD -MP -MF $(cmd).d -MT $@ -c -o $@ $<
	@mv $(cmd).d $(cmd)
