int slow2(void)
{
	return 2;
}
