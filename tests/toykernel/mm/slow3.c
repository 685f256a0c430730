int slow3(void)
{
	return 3;
}
