from standin.policy import main

main("executor")
